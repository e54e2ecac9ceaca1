"""Configurations are the whole model, and travel as JSON."""

import json

import pytest
import torch

from emblema.core.errors import BadCheckpoint, UnknownName
from emblema.encoders.backbone import BackboneConfig
from emblema.encoders.bert import BertConfig
from emblema.encoders.resnet import ResNetConfig
from emblema.encoders.text import TextConfig
from emblema.encoders.tokenizers import TextIds
from emblema.encoders.vit import ViTConfig
from emblema.frameworks.two_tower import ARCHITECTURES, TwoTower, architecture

TEXT = TextConfig(vocab_size=40, context_length=8, width=16, depth=1, heads=2)
CONFIGS = [
    TwoTower(image=ViTConfig(image_size=32, patch_size=8, width=16, depth=1, heads=2), text=TEXT, dim=8),
    TwoTower(image=ResNetConfig(layers=(1, 1, 1, 1), width=8, heads=4, image_size=32), text=TEXT, dim=8),
    TwoTower(
        image=BackboneConfig(name="timm:resnet18", image_size=32, head="mlp", hidden=12),
        text=BertConfig(vocab_size=40, context_length=8, width=16, depth=1, heads=2, pool="mean"),
        dim=8,
        logit_bias=-10.0,
    ),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.image.kind)
def test_builds_and_travels_as_json(config):
    assert TwoTower.from_json(json.loads(json.dumps(config.to_json()))) == config
    torch.manual_seed(0)
    vlm = config.build().eval()
    z_image = vlm.encode_image(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    z_text = vlm.encode_text(TextIds(torch.tensor([[1, 3, 2]]), torch.tensor([3])))
    assert vlm.logits(z_image, z_text).shape == (2, 1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name):
    config = architecture(name)
    assert TwoTower.from_json(json.loads(json.dumps(config.to_json()))) == config
    if name in ("tiny", "small"):
        assert config.build().dim == config.dim


def test_parameter_counts_are_clips():
    with torch.device("meta"):
        count = sum(p.numel() for p in architecture("vit-b-32").build().parameters())
    assert count == 151_277_313  # OpenAI's ViT-B/32


def test_errors_name_what_is_wrong():
    with pytest.raises(BadCheckpoint, match="kind 'swin'"):
        TwoTower.from_json({"image": {"kind": "swin"}})
    with pytest.raises(BadCheckpoint, match="depht"):
        TwoTower.from_json({"image": {"kind": "vit", "depht": 3}})
    with pytest.raises(BadCheckpoint, match="dimm"):
        TwoTower.from_json({"dimm": 3})
    with pytest.raises(UnknownName, match="vit-b-16"):
        architecture("vit-b16")
