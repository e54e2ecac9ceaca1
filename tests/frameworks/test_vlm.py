"""The model face: unit vectors, logits, levels."""

import pytest
import torch

from emblema.core.batch import Level
from emblema.core.errors import ReadsTooShallow
from emblema.encoders.tokenizers import TextIds
from emblema.encoders.vit import ViTConfig
from emblema.frameworks.two_tower import architecture
from emblema.frameworks.vlm import VLM, frozen, unit


@pytest.fixture(scope="module")
def vlm():
    torch.manual_seed(0)
    return frozen(architecture("tiny").build())


IMAGES = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TEXTS = TextIds(torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0]]), torch.tensor([4, 3]))


def test_unit_vectors_and_logits(vlm):
    z_image, z_text = vlm.encode_image(IMAGES), vlm.encode_text(TEXTS)
    assert z_image.shape == (3, 32) and z_text.shape == (2, 32)
    torch.testing.assert_close(z_image.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(vlm.logits(z_image, z_text), vlm.scale * z_image @ z_text.T)
    assert vlm.logits(vlm.encode_patches(IMAGES), z_text).shape == (3, 4, 4, 2)


def test_words(vlm):
    z, real = vlm.encode_words(TEXTS)
    assert z.shape == (2, 4, 32) and real.tolist() == [[True] * 4, [True, True, True, False]]
    # the word at the end of the text is the text's own vector
    torch.testing.assert_close(z[torch.arange(2), TEXTS.length - 1], vlm.encode_text(TEXTS))


def test_tokens_enter_where_raw_input_does(vlm):
    assert vlm.encode_image(vlm.image.embed(IMAGES)).equal(vlm.encode_image(IMAGES))
    torch.testing.assert_close(vlm.encode_text(vlm.text.embed(TEXTS)), vlm.encode_text(TEXTS))


def test_bias_is_added():
    torch.manual_seed(0)
    tiny = architecture("tiny")
    vlm = VLM(tiny.image.build(32), tiny.text.build(32), logit_bias=-10.0)
    z = unit(torch.randn(2, 32))
    torch.testing.assert_close(vlm.logits(z, z), vlm.scale * z @ z.T - 10)
    with pytest.raises(ValueError, match="ends in 32"):
        VLM(tiny.image.build(32), tiny.text.build(16))


@pytest.mark.parametrize("level", Level)
def test_levels_show_no_more_than_was_declared(vlm, level):
    x = vlm.read(IMAGES, level, reader="probe")
    assert len(x) == 3
    allowed = {
        Level.PIXELS: {"pixels", "tokens", "pooled"},
        Level.EMBEDDED: {"tokens"},
        Level.PATCHES: {"patches", "pooled"},
        Level.POOLED: {"pooled"},
    }[level]
    for stage in ("pixels", "tokens", "patches", "pooled"):
        if stage in allowed:
            getattr(x, stage)
        else:
            with pytest.raises(ReadsTooShallow, match="probe declared"):
                getattr(x, stage)


def test_frozen(vlm):
    assert not vlm.training and not any(p.requires_grad for p in vlm.parameters())


def test_value_path_through_the_model(vlm):
    assert not vlm.encode_patches(IMAGES, values=True).allclose(vlm.encode_patches(IMAGES))


def test_tower_that_is_both(vlm):
    shared = ViTConfig(image_size=32, patch_size=8, width=16, depth=1, heads=2).build(8)
    both = VLM(shared, shared)
    assert both.encode_image(IMAGES).equal(both.encode_text(IMAGES))
