"""Two legs: towers that work alone, and fusion layers that read both."""

import json

import pytest
import torch

from emblema.encoders.text import TextConfig
from emblema.encoders.tokenizers import TextIds
from emblema.encoders.vit import ViTConfig
from emblema.frameworks.two_leg import TwoLegs

CONFIG = TwoLegs(
    image=ViTConfig(image_size=32, patch_size=8, width=32, depth=1, heads=2),
    text=TextConfig(vocab_size=40, context_length=8, width=16, depth=1, heads=2),
    dim=12,
    fusion_width=24,
    fusion_depth=2,
    fusion_heads=2,
)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IDS = TextIds(torch.tensor([[1, 5, 6, 2], [1, 2, 0, 0]]), torch.tensor([4, 2]))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CONFIG.build().eval()


def test_parts_of_the_fused_sequence(model):
    joint = model.encode_pair(IMAGES, IDS)
    assert joint.x.shape == (2, 1 + 17 + 4, 24) and joint.pooled.shape == (2, 24)
    assert joint.image_part.shape == (2, 17, 24) and joint.text_part.shape == (2, 4, 24)
    assert joint.real.sum(1).tolist() == [22, 20]


def test_each_part_reads_the_other_and_never_padding(model):
    joint = model.encode_pair(IMAGES, IDS)
    other_text = TextIds(IDS.ids.clone(), IDS.length)
    other_text.ids[0, 1] = 9
    assert not model.encode_pair(IMAGES, other_text).image_part[0].allclose(joint.image_part[0])
    assert not model.encode_pair(IMAGES + 1, IDS).text_part.allclose(joint.text_part)
    padding = TextIds(IDS.ids.clone(), IDS.length)
    padding.ids[1, 2:] = 17
    again = model.encode_pair(IMAGES, padding)
    torch.testing.assert_close(again.x[1, :20], joint.x[1, :20])


def test_encoding_works_without_the_fusion(model):
    z_image, z_text = model.encode_image(IMAGES), model.encode_text(IDS)
    del model.fusion
    assert model.encode_image(IMAGES).equal(z_image) and model.encode_text(IDS).equal(z_text)


def test_pairs_must_pair(model):
    with pytest.raises(ValueError, match="read in pairs"):
        model.encode_pair(IMAGES[:1], IDS)


def test_configuration_travels():
    assert TwoLegs.from_json(json.loads(json.dumps(CONFIG.to_json()))) == CONFIG
