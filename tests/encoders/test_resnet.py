"""CLIP's modified ResNet against open_clip's."""

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet

from emblema.core.errors import NoSuchDoor
from emblema.encoders.resnet import ResNetConfig
from emblema.frameworks.foreign import Source
from emblema.frameworks.open_clip_weights import resnet_tensors


def pair(size=64, layers=(2, 1, 1, 2)):
    torch.manual_seed(0)
    theirs = ModifiedResNet(list(layers), output_dim=24, heads=4, image_size=size, width=8).eval()
    with torch.no_grad():
        for name, value in theirs.state_dict().items():
            if name.endswith(("running_var", "bn3.weight")) or ".1.weight" in name:
                value.copy_(torch.rand_like(value) + 0.5)
            elif value.dim() == 4:
                torch.nn.init.kaiming_normal_(value)
            elif value.is_floating_point() and value.dim() == 1:
                value.add_(torch.randn_like(value) * 0.2)
    config = ResNetConfig(layers=layers, width=8, heads=4, image_size=size)
    ours = config.build(24).eval()
    source = Source({f"visual.{n}": t for n, t in theirs.state_dict().items()})
    resnet_tensors(source, config)
    assert not source.missing and not source.tensors
    ours.load_state_dict({n.removeprefix("image."): t for n, t in source.ours.items()})
    return ours, theirs


def images(size=64):
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_equals_open_clip_with_gradients():
    ours, theirs = pair()
    torch.testing.assert_close(ours.encode(images()), theirs(images()), atol=1e-5, rtol=1e-5)
    ours, theirs = ours.double(), theirs.double()  # near a ReLU's corner fp32 round-off turns a gradient over
    x, y = (images().double().requires_grad_() for _ in range(2))
    a, b = ours.encode(x), theirs(y)
    assert b.std(0).mean() > 0.01  # the pictures differ in it
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(*(torch.autograd.grad(z.square().sum(), i)[0] for z, i in ((a, x), (b, y))))


def test_contract():
    ours, _ = pair()
    tokens = ours.embed(images())
    assert ours.depth == 0 and ours.width == 256 and tokens.x.shape == (3, 5, 256) and tokens.grid == (2, 2)
    pooled = ours.pool(ours.transform(tokens))
    assert pooled.shape == (3, 24) and ours.project(pooled) is pooled
    positions = ours.attention_pool.positions
    cells = tokens.patches() - positions[1:]
    torch.testing.assert_close(tokens.pooled() - positions[0], cells.mean(1), atol=1e-5, rtol=1e-5)


def test_dense_is_the_value_path():
    ours, theirs = pair()
    head = theirs.attnpool
    cells = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(theirs.stem(images()))))).permute(0, 2, 3, 1)
    expected = F.linear(F.linear(cells, head.v_proj.weight, head.v_proj.bias), head.c_proj.weight, head.c_proj.bias)
    torch.testing.assert_close(ours.dense(images(), values=True), expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(NoSuchDoor):
        ours.dense(images(), edit=lambda i, t: t)


def test_other_resolutions_interpolate_positions():
    ours, _ = pair()
    assert ours.dense(images(96)).shape == (3, 3, 3, 24) and ours.encode(images(96)).shape == (3, 24)
    with pytest.raises(ValueError, match="multiple of 32"):
        ResNetConfig(image_size=100).build(24)


def test_published_sizes():
    for name, layers, width, dim in (("RN50", (3, 4, 6, 3), 64, 1024), ("RN50x4", (4, 6, 10, 6), 80, 640)):
        shape = open_clip.get_model_config(name)["vision_cfg"]
        assert tuple(shape["layers"]) == layers and shape["width"] == width
        assert open_clip.get_model_config(name)["embed_dim"] == dim
    with torch.device("meta"):
        ours = sum(p.numel() for p in ResNetConfig().build(1024).parameters())
        theirs = sum(p.numel() for p in ModifiedResNet([3, 4, 6, 3], 1024, 32).parameters())
    assert ours == theirs
