"""Fusion in the backbone: gates of 0 give the towers alone, and each tower reads the other, never its padding."""

import pytest
import torch
from torch import nn

from emblema.core.errors import NoSuchDoor
from emblema.encoders.backbone import BackboneConfig
from emblema.encoders.text import TextConfig
from emblema.encoders.tokenizers import TextIds
from emblema.encoders.vit import ViTConfig
from emblema.frameworks.fused import FusedTowers
from emblema.parts.fusion import GatedReading

CONFIG = FusedTowers(
    image=ViTConfig(image_size=32, patch_size=8, width=32, depth=3, heads=2),
    text=TextConfig(vocab_size=40, context_length=8, width=16, depth=2, heads=2, causal=False),
    dim=12,
    fused_layers=2,
)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IDS = TextIds(torch.tensor([[1, 5, 6, 2], [1, 2, 0, 0]]), torch.tensor([4, 2]))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CONFIG.build().eval()


def opened(model):
    for reading in (*model.of_text, *model.of_image):
        nn.init.constant_(reading.alpha, 0.7)
    return model


def test_closed_gates_give_the_towers_alone(model):
    image, text = model.encode_pair(IMAGES, IDS)
    assert torch.equal(image.x, model.image.transform(model.image.embed(IMAGES)).x)
    assert torch.equal(text.x, model.text.transform(model.text.embed(IDS)).x)
    torch.testing.assert_close(
        model.text.project(model.text.pool(text)), model.text.encode(IDS), atol=1e-5, rtol=1e-5
    )  # the end tokens of packed rows


def test_open_gates_read_the_other_tower_and_never_padding(model):
    z = model.encode_image(IMAGES)
    image, text = opened(model).encode_pair(IMAGES, IDS)
    assert torch.equal(model.encode_image(IMAGES), z)  # alone, nothing has changed
    words = TextIds(IDS.ids.clone(), IDS.length)
    words.ids[0, 1] = 9
    assert not torch.allclose(model.encode_pair(IMAGES, words)[0].x[0], image.x[0])
    assert not torch.allclose(model.encode_pair(IMAGES + 1, IDS)[1].x, text.x)
    padding = TextIds(IDS.ids.clone(), IDS.length)
    padding.ids[1, 2:] = 17
    again_image, again_text = model.encode_pair(IMAGES, padding)
    torch.testing.assert_close(again_image.x, image.x)
    torch.testing.assert_close(again_text.x[1, :2], text.x[1, :2])


def test_layers_in_step_read_what_entered_the_other(model):
    """The last two layers by hand."""
    image, text = opened(model).encode_pair(IMAGES, IDS)
    x = model.image.layer(0, model.image.enter(model.image.embed(IMAGES)))
    y = model.text.enter(model.text.embed(IDS))
    for i in range(2):
        block, other = model.image.blocks[1 + i], model.text.blocks[i]
        said = block.attention(block.norm1(x.x))
        heard = other.attention(other.norm1(y.x), y.real()[:, None, None])
        new_x = x.x + model.of_text[i](said, y.x, y.real())
        new_y = y.x + model.of_image[i](heard, x.x)
        x = x.with_x(new_x + block.mlp(block.norm2(new_x)))
        y = y.with_x(new_y + other.mlp(other.norm2(new_y)))
    torch.testing.assert_close(image.x, x.x)
    torch.testing.assert_close(text.x, y.x)


def test_oracle_multihead_attention():
    torch.manual_seed(1)
    ours = GatedReading(32, 4, 16)
    theirs = nn.MultiheadAttention(32, 4, kdim=16, vdim=16, batch_first=True)
    with torch.no_grad():
        ours.alpha.fill_(0.3)
        theirs.q_proj_weight.copy_(ours.cross.q.weight)
        theirs.k_proj_weight.copy_(ours.cross.kv.weight[:32])
        theirs.v_proj_weight.copy_(ours.cross.kv.weight[32:])
        theirs.in_proj_bias.copy_(torch.cat([ours.cross.q.bias, ours.cross.kv.bias]))
        theirs.out_proj.weight.copy_(ours.cross.out.weight)
        theirs.out_proj.bias.copy_(ours.cross.out.bias)
    said, other, real = torch.randn(2, 5, 32), torch.randn(2, 3, 16), torch.tensor([[True] * 3, [True, True, False]])
    read = theirs(ours.norm(said), other, other, key_padding_mask=~real)[0]
    torch.testing.assert_close(ours(said, other, real), said + 0.3 * read)


def test_the_first_gradient_is_that_of_the_gate(model):
    model.match(IMAGES, IDS).pow(2).sum().backward()
    for reading in (*model.of_text, *model.of_image):
        assert reading.alpha.grad != 0
        assert all((p.grad == 0).all() for p in reading.cross.parameters())


def test_bad_shapes_are_refused(model):
    with pytest.raises(ValueError, match="read in pairs"):
        model.match(IMAGES[:1], IDS)
    with pytest.raises(ValueError, match="from 1 to 2 can be fused"):
        FusedTowers(image=CONFIG.image, text=CONFIG.text, dim=12, fused_layers=3).build()
    with pytest.raises(NoSuchDoor, match="two transformers"):
        image = BackboneConfig(name="timm:regnetx_002", image_size=32)
        FusedTowers(image=image, text=CONFIG.text, dim=12, fused_layers=1).build()
