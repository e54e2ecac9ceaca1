"""Words that read an image: the upper half of a text decoder (CoCa), and class texts in the context of one image
(DenseCLIP)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.encoders.block import Block, CrossAttention, LayerNorm


class CrossBlock(Block):
    """A transformer block that also reads a memory, between its attention and its feed-forward."""

    def __init__(self, width: int, heads: int, memory_width: int, eps: float = 1e-5):
        super().__init__(width, heads, eps=eps)
        self.norm_cross = LayerNorm(width, eps=eps)
        self.cross = CrossAttention(width, heads, memory_width)

    def read(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """x [B, L, width], memory [B, M, memory_width] -> [B, L, width]"""
        return self.shown(x, memory, mask)[0]

    def shown(self, x: Tensor, memory: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the attention through which the memory was read: [B, heads, L, M]"""
        x = x + self.attention(self.norm1(x), mask)
        weights = self.cross.weights(self.norm_cross(x), memory)
        x = x + self.cross.read(weights, memory)
        return x + self.mlp(self.norm2(x)), weights


class CaptionDecoder(nn.Module):
    """States of words and what was seen of the image -> logits of the next word."""

    def __init__(self, width: int, depth: int, heads: int, memory_width: int, vocabulary: int, eps: float = 1e-5):
        super().__init__()
        self.blocks = nn.ModuleList(CrossBlock(width, heads, memory_width, eps) for _ in range(depth))
        self.norm = LayerNorm(width, eps=eps)
        self.head = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.head.weight, std=width**-0.5)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """x [B, L, width], memory [B, M, memory_width] -> [B, L, V]; position l has read the words up to l."""
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        for block in self.blocks:
            x = block.read(x, memory, causal)  # type: ignore[operator]
        return self.head(self.norm(x))


class ContextDecoder(nn.Module):
    """What an image says of each class text: texts read one another and the image's vectors, in a space of `width`."""

    def __init__(self, dim: int, width: int = 256, depth: int = 3, heads: int = 4, eps: float = 1e-5):
        super().__init__()
        self.from_image = nn.Sequential(LayerNorm(dim, eps=eps), nn.Linear(dim, width), LayerNorm(width, eps=eps))
        self.from_text = nn.Sequential(LayerNorm(dim, eps=eps), nn.Linear(dim, width))
        self.blocks = nn.ModuleList(CrossBlock(width, heads, width, eps) for _ in range(depth))
        self.out = nn.Sequential(LayerNorm(width, eps=eps), nn.Linear(width, dim))

    def forward(self, texts: Tensor, image: Tensor) -> Tensor:
        """texts [B, C, D], vectors of the image [B, M, D] -> [B, C, D]"""
        x, memory = self.from_text(texts), self.from_image(image)
        everyone = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
        for block in self.blocks:
            x = block.read(x, memory, everyone)  # type: ignore[operator]
        return self.out(x)


def next_words(logits: Tensor, ids: Tensor, length: Tensor) -> Tensor:
    """Summed cross-entropy of the next words, and their number, of each caption: [B, 2].

    `captioning` of `emblema.objectives.generative` a row at a time, so that gradients can be cached; padding is told by
    `length` [B] and not by its id. Pass logits [B, L, V] and ids [B, L] unshifted.
    """
    targets = ids[:, 1:]  # [B, L-1]
    real = torch.arange(1, ids.shape[1], device=ids.device) < length[:, None]
    each = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), targets, reduction="none") * real  # [B, L-1]
    return torch.stack([each.sum(1), real.sum(1).to(each.dtype)], 1)
