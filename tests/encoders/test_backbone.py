"""timm and torchvision backbones behind the face of a tower."""

import pytest
import timm
import torch
import torchvision

from emblema.core.errors import NoSuchDoor, UnknownName
from emblema.encoders.backbone import BackboneConfig

# name, size, grid of the last map
NAMES = [
    ("torchvision:alexnet", 64, 1),
    ("torchvision:vgg11", 64, 2),
    ("torchvision:resnet18", 64, 2),
    ("torchvision:swin_t", 64, 2),
    ("timm:vgg11", 64, 2),
    ("timm:resnet18", 64, 2),
    ("timm:efficientnet_b0", 64, 2),
    ("timm:fbnetv3_b", 64, 2),
    ("timm:swin_tiny_patch4_window7_224", 64, 2),
    ("timm:convnext_atto", 64, 2),
    ("timm:vit_tiny_patch16_224", 64, 4),
]


def build(name, size, dim=8, **kwargs):
    torch.manual_seed(0)
    return BackboneConfig(name=name, image_size=size, **kwargs).build(dim).eval()


def images(size=64):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "size", "side"), NAMES, ids=[n for n, *_ in NAMES])
@torch.no_grad()
def test_backbone_behind_the_face(name, size, side, monkeypatch):
    models, get_model = [], torchvision.models.get_model
    monkeypatch.setattr(torchvision.models, "get_model", lambda *a, **k: models.append(get_model(*a, **k)) or models[0])
    tower = build(name, size)
    library, _, short = name.partition(":")
    x = images(size)
    if library == "timm":
        theirs = tower.trunk.forward_features(x)  # NCHW, NHWC (Swin) or tokens (ViT)
        if theirs.dim() == 3:
            theirs = theirs[:, tower.trunk.num_prefix_tokens :].transpose(1, 2).unflatten(2, (side, side))
        elif "swin" in short:
            theirs = theirs.permute(0, 3, 1, 2)
    else:
        model, kept = models[0].eval(), []
        model.avgpool.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
        model(x)  # whatever torchvision pools is the map
        theirs = kept[0]
    assert theirs.shape == (2, tower.width, side, side)
    dense = tower.dense(x)
    assert dense.shape == (2, side, side, 8)
    torch.testing.assert_close(dense, tower.head(theirs.permute(0, 2, 3, 1)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tower.encode(x), tower.head(theirs.mean((2, 3))), atol=1e-4, rtol=1e-4)


def test_heads_and_pooling():
    tower = build("timm:resnet18", 32, head="mlp", hidden=20, pool="max")
    assert tower.head[0].out_features == 20 and tower.encode(images(32)).shape == (2, 8)
    torch.testing.assert_close(tower.embed(images(64)).pooled(), tower.map(images(64)).amax((2, 3)))
    with pytest.raises(ValueError, match="pool"):
        build("timm:resnet18", 32, pool="cls")


def test_no_feature_map_is_said():
    tower = build("timm:resnet18", 32)
    tower.layout = "vector"  # as of a backbone that ends in a vector
    with pytest.raises(NoSuchDoor, match="no feature map"):
        tower.dense(images(32))
    with pytest.raises(NoSuchDoor, match="ViT"):
        tower.encode(images(32), edit=lambda i, t: t)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("timm:resnet81", "did you mean"), ("torchvision:alexnett", "alexnet"), ("timm:hf-hub:a/b", "no timm")],
)
def test_unknown_names(name, hint):
    with pytest.raises(UnknownName, match=hint):
        build(name, 32)
    assert timm.is_model("resnet18")


def test_no_library():
    with pytest.raises(ValueError, match="timm:NAME"):
        build("resnet18", 32)


def test_gradients_reach_the_backbone():
    tower = build("timm:resnet18", 32).train()
    tower.encode(images(32)).square().sum().backward()
    assert all(p.grad is not None for p in tower.parameters())


def test_own_pooling_at_one_place_is_the_pooling_of_a_map_of_one_cell():
    tower = BackboneConfig(name="timm:test_convnext", image_size=64, pool="own", head="own").build(16).eval()
    x = images(64)
    dense, cell = tower.dense(x), tower.map(x)[:, :, 1:2, 0:1]
    expected = tower.trunk.forward_head(cell)
    torch.testing.assert_close(dense[:, 1, 0], expected)
    torch.testing.assert_close(tower.encode(x), tower.trunk(tower.normalise(x)))


def test_own_pooling_of_tokens_has_no_dense_features():
    tower = BackboneConfig(name="timm:test_vit", image_size=160, pool="own:token", head="own").build(16).eval()
    with pytest.raises(NoSuchDoor, match="pools its tokens in its own way"):
        tower.dense(images(160))


def test_torchvision_has_no_own_pooling():
    with pytest.raises(ValueError, match="only timm's do"):
        BackboneConfig(name="torchvision:alexnet", pool="own").build(16)
