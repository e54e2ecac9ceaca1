"""Fusion of two legs: one transformer over [CLS_m; image; text tokens] (FLAVA), attention both ways (GLIP), or
what a layer's attention says changed by what it reads of the other leg (FIBER)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emblema.core.tokens import Tokens
from emblema.encoders.block import Attention, Block, CrossAttention, LayerNorm


@dataclass(frozen=True)
class Joint:
    """A fused sequence that knows its parts."""

    x: Tensor  # [B, 1 + L_i + L_t, width]
    image: int  # L_i
    real: Tensor  # [B, 1 + L_i + L_t] False at padding of the texts

    @property
    def pooled(self) -> Tensor:
        """[CLS_m]: [B, width]"""
        return self.x[:, 0]

    @property
    def image_part(self) -> Tensor:
        return self.x[:, 1 : 1 + self.image]

    @property
    def text_part(self) -> Tensor:
        return self.x[:, 1 + self.image :]


class FusionEncoder(nn.Module):
    """Maps both legs to one width, then lets every token read every real one."""

    def __init__(self, image_width: int, text_width: int, width: int, depth: int, heads: int, eps: float = 1e-5):
        super().__init__()
        self.width = width
        self.from_image = nn.Linear(image_width, width)
        self.from_text = nn.Linear(text_width, width)
        self.class_token = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, eps=eps) for _ in range(depth))
        self.norm = LayerNorm(width, eps=eps)

    def forward(self, image: Tokens, text: Tokens) -> Joint:
        """Transformed tokens of the legs -> the fused sequence."""
        if len(image) != len(text):
            raise ValueError(f"{len(image)} images cannot be fused with {len(text)} texts: they are read in pairs")
        x_image, x_text = self.from_image(image.x), self.from_text(text.x)
        start = self.class_token.to(x_image.dtype).expand(len(x_image), 1, -1)
        x = torch.cat([start, x_image, x_text.to(x_image.dtype)], 1)  # [B, 1 + L_i + L_t, width]
        seen = torch.ones(len(x), 1 + x_image.shape[1], dtype=torch.bool, device=x.device)
        real = torch.cat([seen, text.real()], 1)
        for block in self.blocks:
            x = block(x, real[:, None, None])
        return Joint(self.norm(x), x_image.shape[1], real)


class BidirectionalAttention(nn.Module):
    """GLIP's deep fusion: places read words and words read places, by one matrix of scores.

    What is read is added with a learned weight a channel that starts at `weight`. Scores are bounded to +-50,000, so
    that they fit fp16.
    """

    def __init__(self, width: int, heads: int, weight: float = 1.0, eps: float = 1e-5):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.norm_places, self.norm_words = LayerNorm(width, eps=eps), LayerNorm(width, eps=eps)
        self.places, self.words = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)  # score, value
        self.to_places, self.to_words = nn.Linear(width, width), nn.Linear(width, width)
        self.weight_places = nn.Parameter(torch.full((width,), weight))
        self.weight_words = nn.Parameter(torch.full((width,), weight))

    split, merge = Attention.split, Attention.merge

    def forward(self, places: Tensor, words: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """places [B, N, D], words [B, L, D], real [B, L] False at padding -> both, informed by the other."""
        q, v_places = map(self.split, self.places(self.norm_places(places)).chunk(2, -1))  # each [B, heads, N, d]
        k, v_words = map(self.split, self.words(self.norm_words(words)).chunk(2, -1))  # each [B, heads, L, d]
        score = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).clamp(-50_000, 50_000)  # [B, heads, N, L]
        read = score.masked_fill(~real[:, None, None], -torch.inf).softmax(-1) @ v_words  # [B, heads, N, d]
        heard = score.transpose(-1, -2).softmax(-1) @ v_places  # [B, heads, L, d]
        places = places + self.weight_places * self.to_places(self.merge(read))
        return places, words + self.weight_words * self.to_words(self.merge(heard))


class GatedReading(nn.Module):
    """FIBER's term inside a block: a + alpha Cross(LN(a), y), a what self-attention says, y the other leg's tokens.

    alpha starts at 0, so a fresh model says what its towers say alone; the first step then moves alpha only.
    """

    def __init__(self, width: int, heads: int, other_width: int, eps: float = 1e-5):
        super().__init__()
        self.norm = LayerNorm(width, eps=eps)
        self.cross = CrossAttention(width, heads, other_width)
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, said: Tensor, other: Tensor, real: Tensor | None = None) -> Tensor:
        """said [B, L, width], other [B, M, other_width], real [B, M] False at padding -> [B, L, width]"""
        mask = None if real is None else real[:, None, None]  # [B, 1, 1, M]
        return said + self.alpha * self.cross(self.norm(said), other, mask)
