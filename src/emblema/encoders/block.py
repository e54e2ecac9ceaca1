"""A transformer block whose attention can be asked for: in full, at one position, as its value path, as weights.

In bf16 on a CPU attention is two matrix products around a softmax: torch's fused kernel, whose backward pass is
several times slower there, is the faster one everywhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Change = Callable[[Tensor], Tensor]


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): what OpenAI's weights were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
}


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in fp32, whatever the precision of its input; the result has the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            if x.dtype == self.weight.dtype:
                return super().forward(x)
            weight, bias = self.weight.float(), self.bias.float()
            return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over [..., heads, L, d]; `mask` is bool, True where a query may read a key."""
    if q.dtype != torch.bfloat16 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, mask)
    score = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # [..., heads, Lq, Lk]
    if mask is not None:
        score = score.masked_fill(~mask, -torch.inf)
    return score.softmax(-1) @ v


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """[..., L, heads * d] -> [..., heads, L, d]"""
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    def merge(self, x: Tensor) -> Tensor:
        """[..., heads, L, d] -> [..., L, heads * d]"""
        return x.transpose(-2, -3).flatten(-2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = map(self.split, self.qkv(x).chunk(3, -1))  # each [B, heads, L, d]
        return self.out(self.merge(attend(q, k, v, mask)))

    def at(self, x: Tensor, query: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention of `query` [B, n, D] only (rows of `x`): the last layer needs no other."""
        width = x.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = self.split(F.linear(query, weight[:width], bias[:width]))
        k, v = map(self.split, F.linear(x, weight[width:], bias[width:]).chunk(2, -1))
        return self.out(self.merge(attend(q, k, v, mask)))  # [B, n, D]

    def values(self, x: Tensor) -> Tensor:
        """The value path: what every position would say if it read only itself (MaskCLIP). [B, L, D]"""
        width = x.shape[-1]
        return self.out(F.linear(x, self.qkv.weight[2 * width :], self.qkv.bias[2 * width :]))

    def weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention probabilities [B, heads, L, L]."""
        q, k, _ = map(self.split, self.qkv(x).chunk(3, -1))
        score = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return (score if mask is None else score.masked_fill(~mask, -torch.inf)).softmax(-1)


class CrossAttention(nn.Module):
    """Multi-head attention of one sequence over another, whose width may differ."""

    def __init__(self, width: int, heads: int, memory_width: int | None = None):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(memory_width or width, 2 * width)
        self.out = nn.Linear(width, width)

    split, merge = Attention.split, Attention.merge

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """What x [B, L, width] reads of memory [B, M, memory_width]: [B, L, width]"""
        k, v = map(self.split, self.kv(memory).chunk(2, -1))  # each [B, heads, M, d]
        return self.out(self.merge(attend(self.split(self.q(x)), k, v, mask)))

    def weights(self, x: Tensor, memory: Tensor) -> Tensor:
        """Attention probabilities [B, heads, L, M]."""
        q, k = self.split(self.q(x)), self.split(self.kv(memory).chunk(2, -1)[0])
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1)

    def read(self, weights: Tensor, memory: Tensor) -> Tensor:
        """What is read of memory [B, M, memory_width] with these `weights` [B, heads, L, M]: [B, L, width]"""
        return self.out(self.merge(weights @ self.split(self.kv(memory).chunk(2, -1)[1])))

    def values(self, memory: Tensor) -> Tensor:
        """What would be read if the memory were one place, for each place: [B, M, width]"""
        return self.out(self.kv(memory).chunk(2, -1)[1])


class Block(nn.Module):
    """Attention and feed-forward with residuals: pre-norm (CLIP, ViT) or post-norm (BERT)."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        activation: str = "gelu",
        eps: float = 1e-5,
        post_norm: bool = False,
    ):
        super().__init__()
        hidden = round(width * mlp_ratio)
        self.post_norm = post_norm
        self.norm1 = LayerNorm(width, eps=eps)
        self.attention = Attention(width, heads)
        self.norm2 = LayerNorm(width, eps=eps)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), ACTIVATIONS[activation](), nn.Linear(hidden, width))

    def forward(self, x: Tensor, mask: Tensor | None = None, change: Change | None = None) -> Tensor:
        """[B, L, D] -> [B, L, D]. `change` is applied to what attention says before it joins x: the door through which
        another sequence is heard inside the block (FIBER)."""
        if self.post_norm:
            said = self.attention(x, mask)
            x = self.norm1(x + (change(said) if change else said))
            return self.norm2(x + self.mlp(x))
        return self.reading(x, self.norm1(x), mask, change)

    def reading(self, x: Tensor, normed: Tensor, mask: Tensor | None = None, change: Change | None = None) -> Tensor:
        """What `forward` gives for x where its attention reads `normed` in place of norm1(x): for gradients by what a
        pre-norm block reads. [B, L, D]"""
        if self.post_norm:
            raise ValueError("a post-norm block reads x itself: take the gradient by x")
        said = self.attention(normed, mask)
        x = x + (change(said) if change else said)
        return x + self.mlp(self.norm2(x))

    def at(self, x: Tensor, position: Tensor, mask: Tensor | None = None) -> Tensor:
        """What `forward` gives at `position` [B], and only that: [B, D]."""
        rows = torch.arange(x.shape[0], device=x.device)
        chosen = x[rows, position][:, None]  # [B, 1, D]
        if mask is not None and mask.shape[-2] > 1:  # the chosen query's row of the mask
            mask = mask.expand(x.shape[0], 1, *mask.shape[-2:])[rows, :, position][:, :, None]  # [B, 1, 1, L]
        if self.post_norm:
            chosen = self.norm1(chosen + self.attention.at(x, chosen, mask))
            return self.norm2(chosen + self.mlp(chosen))[:, 0]
        normed = self.norm1(x)
        chosen = chosen + self.attention.at(normed, normed[rows, position][:, None], mask)
        return (chosen + self.mlp(self.norm2(chosen)))[:, 0]

    def value_path(self, x: Tensor) -> Tensor:
        """The block with attention replaced by its value path (dense features of MaskCLIP). [B, L, D]"""
        if self.post_norm:
            x = self.norm1(x + self.attention.values(x))
            return self.norm2(x + self.mlp(x))
        x = x + self.attention.values(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def attention_weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention probabilities for what enters this block: [B, heads, L, L]."""
        return self.attention.weights(x if self.post_norm else self.norm1(x), mask)


def blocks(config: Any, *, post_norm: bool = False) -> nn.ModuleList:
    """The layers that a tower's configuration describes."""
    shape = {"mlp_ratio": config.mlp_ratio, "activation": config.activation, "eps": config.eps}
    return nn.ModuleList(Block(config.width, config.heads, post_norm=post_norm, **shape) for _ in range(config.depth))
