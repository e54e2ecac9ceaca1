"""ViT towers: oracle, pinned order, doors."""

from functools import partial

import pytest
import torch
from open_clip.transformer import LayerNorm, QuickGELU, VisionTransformer
from torch import nn

from emblema.core.errors import NoSuchDoor
from emblema.encoders.resnet import ResNetConfig
from emblema.encoders.vit import ViTConfig
from emblema.frameworks.foreign import Source
from emblema.frameworks.open_clip_weights import vit_tensors

SHAPE = {"image_size": 24, "patch_size": 8, "width": 16, "depth": 3, "heads": 2}


def tower(**kwargs):
    torch.manual_seed(0)
    vit = ViTConfig(**{**SHAPE, **kwargs}).build(16 if kwargs.get("project") is False else 12)
    for p in vit.parameters():
        nn.init.normal_(p, std=0.3)
    return vit.eval()


def images(side=24, batch=2):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("norm_before", [True, False])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_equals_open_clip(act, norm_before, pool):
    torch.manual_seed(0)
    theirs = VisionTransformer(
        image_size=24,
        patch_size=8,
        width=16,
        layers=3,
        heads=2,
        mlp_ratio=4.0,
        output_dim=12,
        no_ln_pre=not norm_before,
        pool_type={"cls": "tok", "mean": "avg"}[pool],
        act_layer=QuickGELU if act == "quick_gelu" else nn.GELU,
        norm_layer=partial(LayerNorm, eps=1e-4),
    ).eval()
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.3)
    config = ViTConfig(**SHAPE, activation=act, norm_before=norm_before, pool=pool, eps=1e-4)
    ours = config.build(12).eval()
    source = Source({f"visual.{n}": t for n, t in theirs.state_dict().items()})
    vit_tensors(source, config)
    ours.load_state_dict({n.removeprefix("image."): t for n, t in source.ours.items()})
    assert not source.tensors
    torch.testing.assert_close(ours.encode(images()), theirs(images()), atol=1e-5, rtol=1e-5)


def test_uint8_is_normalised_with_the_towers_mean_and_std():
    vit = tower()
    pixels = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8)
    mean, std = torch.tensor(vit.config.mean).view(3, 1, 1), torch.tensor(vit.config.std).view(3, 1, 1)
    torch.testing.assert_close(vit.encode(pixels), vit.encode((pixels / 255 - mean) / std), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="RGB"):
        vit.encode(pixels[:, :1])


def test_order_prompts_join_after_positions_and_before_the_first_norm():
    """MaPLe: patches + [CLS] + positions, then the prompt, then ln_pre over all of them."""
    vit = tower()
    prompt = torch.randn(2, 16)
    x = vit.stem(images()).flatten(2).transpose(1, 2)
    x = torch.cat([vit.class_token.expand(2, 1, -1), x], 1) + vit.positions
    x = torch.cat([x, prompt.expand(2, -1, -1)], 1)  # no position is added to the prompt
    x = vit.norm_before(x)
    for block in vit.blocks:
        x = block(x)
    expected = vit.norm(x[:, 0]) @ vit.projection

    def edit(i, tokens):
        return tokens.insert(prompt, None) if i == 0 else tokens

    torch.testing.assert_close(vit.encode(images(), edit), expected)
    torch.testing.assert_close(vit.encode(vit.embed(images()).insert(prompt, None)), expected)


def test_edit_sees_what_enters_each_layer():
    vit, seen = tower(), []

    def edit(i, tokens):
        seen.append((i, tokens.x))
        return tokens

    vit.encode(images(), edit)
    assert [i for i, _ in seen] == [0, 1, 2]
    torch.testing.assert_close(seen[1][1], vit.blocks[0](vit.norm_before(seen[0][1])))


@pytest.mark.parametrize("pool", ["cls", "mean", "map"])
def test_short_cut_equals_transform_and_pool(pool):
    vit = tower(pool=pool)
    results = []
    for encode in (vit.encode, lambda x: vit.project(vit.pool(vit.transform(vit.embed(x))))):
        x = images().requires_grad_()
        z = encode(x)
        grads = torch.autograd.grad(z.square().sum(), [x, *vit.blocks.parameters(), vit.positions])
        results.append((z, grads))
    torch.testing.assert_close(results[0][0], results[1][0])
    for a, b in zip(results[0][1], results[1][1]):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_layers_in_step_equal_transform():
    vit = tower()
    tokens = vit.enter(vit.embed(images()))
    for i in range(vit.depth):
        tokens = vit.layer(i, tokens)
    assert tokens.x.equal(vit.transform(vit.embed(images())).x)


def test_read_only_prompts_leave_the_others_as_they_were():
    vit = tower()
    plain = vit.transform(vit.embed(images())).x
    prompted = vit.transform(vit.embed(images()).insert(torch.randn(3, 16), None, read_only=True))
    torch.testing.assert_close(prompted.x[:, :10], plain, atol=1e-6, rtol=1e-6)
    # with the same number of keys the others are equal bit by bit, whatever the prompt says
    other = vit.transform(vit.embed(images()).insert(torch.randn(3, 16), None, read_only=True))
    assert other.x[:, :10].equal(prompted.x[:, :10]) and not other.x[:, 10:].equal(prompted.x[:, 10:])
    # and the prompts do read: they see the picture
    moved = vit.transform(vit.embed(images() + 1).insert(torch.zeros(3, 16), None, read_only=True))
    still = vit.transform(vit.embed(images()).insert(torch.zeros(3, 16), None, read_only=True))
    assert not moved.x[:, 10:].allclose(still.x[:, 10:])


def test_dense_and_value_path_by_hand():
    vit = tower()
    tokens = vit.transform(vit.embed(images()))
    expected = (vit.norm(tokens.patches()) @ vit.projection).unflatten(1, (3, 3))
    torch.testing.assert_close(vit.dense(images()), expected)
    x = vit.norm_before(vit.embed(images()).x)
    for block in vit.blocks[:-1]:
        x = block(x)
    x = vit.blocks[-1].value_path(x)[:, 1:]
    expected = (vit.norm(x) @ vit.projection).unflatten(1, (3, 3))
    torch.testing.assert_close(vit.dense(images(), values=True), expected)


def test_dense_of_the_pooling_head_reads_one_place():
    vit = tower(pool="map", class_token=False, norm_before=False, project=False, patch_bias=True)
    x = vit.transform(vit.embed(images()))
    first = x.with_x(x.x[:, :1])  # a picture of one patch: the head can only pool it
    torch.testing.assert_close(vit.dense(images())[:, 0, 0], vit.pool(first))


def test_attention_weights_for_what_enters():
    vit = tower()
    tokens = vit.embed(images())
    weights = vit.attention_weights(0, tokens)
    assert weights.shape == (2, 2, 10, 10)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 10))
    torch.testing.assert_close(weights, vit.blocks[0].attention.weights(vit.blocks[0].norm1(vit.norm_before(tokens.x))))


def test_other_resolutions():
    vit = tower()
    assert vit.dense(images(40)).shape == (2, 5, 5, 12)
    assert vit.embed(torch.randn(1, 3, 16, 32)).grid == (2, 4)
    with pytest.raises(ValueError, match="do not divide"):
        vit.encode(images(30))


def test_dropped_patches():
    vit = tower(pool="mean")
    keep = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
    z = vit.encode(vit.embed(images()).hide(keep))
    assert z.shape == (2, 12)
    everything = vit.embed(images()).hide(torch.arange(9).expand(2, -1))
    torch.testing.assert_close(vit.encode(everything), vit.encode(images()))


@pytest.mark.parametrize("pool", ["cls", "mean", "map"])
def test_local_pools_a_neighbourhood(pool):
    vit = tower(pool=pool, project=pool != "map")
    whole = vit.local(images(), radius=1)  # the only neighbourhood of 3x3 in a grid of 3x3 is all of it
    torch.testing.assert_close(whole, vit.encode(images())[:, None, None].expand_as(whole), atol=1e-5, rtol=1e-5)
    place = vit.embed(images()).hide(torch.tensor([[5], [5]]))
    torch.testing.assert_close(vit.local(images(), radius=0)[:, 1, 2], vit.encode(place), atol=1e-5, rtol=1e-5)
    prompted = vit.embed(images()).insert(torch.ones(2, 16), at=1)
    assert not torch.allclose(vit.local(prompted, 0), vit.local(images(), 0), atol=1e-3)


@pytest.mark.parametrize("stem", ["conv", "timm:resnet18:2"])
def test_stems(stem):
    vit = tower(stem=stem, image_size=32)
    assert vit.encode(images(32)).shape == (2, 12) and vit.dense(images(32)).shape == (2, 4, 4, 12)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image_size": 25}, "multiple of patch"),
        ({"class_token": False}, "class_token"),
        ({"stem": "magic"}, "unknown stem"),
        ({"project": False, "width": 32}, "without a projection"),
        ({"stem": "conv", "patch_size": 12}, "power of 2"),
    ],
)
def test_impossible_shapes(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tower(**kwargs)


def test_towers_without_layers_have_no_door():
    resnet = ResNetConfig(layers=(1, 1, 1, 1), width=8, heads=4, image_size=32).build(12).eval()
    with pytest.raises(NoSuchDoor, match="ViT"):
        resnet.encode(images(32), edit=lambda i, t: t)
    with pytest.raises(NoSuchDoor):
        resnet.layer(0, resnet.embed(images(32)))
    with pytest.raises(NoSuchDoor, match="use its dense features"):
        resnet.local(images(32))
