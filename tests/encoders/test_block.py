"""Attention against torch's own; the doors of a block against its whole."""

import pytest
import torch
from torch import nn

from emblema.encoders.block import ACTIVATIONS, Attention, Block, LayerNorm, QuickGELU, attend


def noisy(module):
    torch.manual_seed(1)
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)
    return module


@pytest.fixture
def x():
    return torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))


def test_attention_is_torchs(x):
    ours, theirs = noisy(Attention(8, 2)), nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.out.weight,
            "out_proj.bias": ours.out.bias,
        }
    )
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    for mask in (None, causal):
        expected, weights = theirs(x, x, x, attn_mask=None if mask is None else ~mask, average_attn_weights=False)
        torch.testing.assert_close(ours(x, mask), expected)
        torch.testing.assert_close(ours.weights(x, mask), weights)
        torch.testing.assert_close(ours.weights(x, mask).sum(-1), torch.ones(3, 2, 5))


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("masked", ["none", "square", "rows"])
def test_block_at_one_position_equals_the_whole(x, post_norm, masked):
    block = noisy(Block(8, 2, post_norm=post_norm))
    mask = {
        "none": None,
        "square": torch.ones(5, 5, dtype=torch.bool).tril(),
        "rows": (torch.arange(5) < torch.tensor([[3], [5], [4]]))[:, None, None],
    }[masked]
    position = torch.tensor([2, 4, 0])
    whole = block(x, mask)[torch.arange(3), position]
    torch.testing.assert_close(block.at(x, position, mask), whole)


@pytest.mark.parametrize("post_norm", [False, True])
def test_value_path_by_hand(x, post_norm):
    block = noisy(Block(8, 2, post_norm=post_norm))
    attention = block.attention
    normed = x if post_norm else block.norm1(x)
    values = normed @ attention.qkv.weight[16:].T + attention.qkv.bias[16:]
    said = values @ attention.out.weight.T + attention.out.bias
    if post_norm:
        y = block.norm1(x + said)
        expected = block.norm2(y + block.mlp(y))
    else:
        y = x + said
        expected = y + block.mlp(block.norm2(y))
    torch.testing.assert_close(block.value_path(x), expected)
    # each position reads itself only: with one token, the value path is the block
    torch.testing.assert_close(block.value_path(x[:, :1]), block(x[:, :1]))


def test_attend_with_other_queries():
    q, k, v = torch.randn(2, 3, 1, 4), torch.randn(2, 3, 6, 4), torch.randn(2, 3, 6, 4)
    expected = nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(attend(q, k, v), expected)


def test_quick_gelu_is_not_gelu():
    x = torch.linspace(-3, 3, 50)
    assert (QuickGELU()(x) - nn.GELU()(x)).abs().max() > 0.01
    torch.testing.assert_close(QuickGELU()(x), x * torch.sigmoid(1.702 * x))
    assert {"gelu", "gelu_tanh", "quick_gelu"} <= set(ACTIVATIONS)


def test_layer_norm_keeps_the_dtype_and_counts_in_fp32(x):
    norm = noisy(LayerNorm(8))
    half = x.bfloat16()
    assert norm(half).dtype == torch.bfloat16
    torch.testing.assert_close(norm(half), norm(half.float()).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype == torch.float32


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="multiple of 3 heads"):
        Attention(8, 3)


def test_what_the_attention_reads_is_the_normed_input(x):
    block = Block(x.shape[-1], 2)
    assert block.reading(x, block.norm1(x)).equal(block(x))
    with pytest.raises(ValueError, match="post-norm"):
        Block(x.shape[-1], 2, post_norm=True).reading(x, x)
