"""Regions held against the words of one prompt: which tokens a phrase has, and the head that compares (GLIP)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.errors import BadData
from emblema.encoders.block import Block
from emblema.parts.fusion import BidirectionalAttention

BETWEEN = ". "  # phrases of a prompt
PRIOR = 0.01  # of a region and a token before anything is learnt


def prompt(names: Sequence[str]) -> str:
    """Class names as one text; a separator inside a name becomes a space."""
    return BETWEEN.join(name.replace(BETWEEN, " ") for name in names)


def phrase_tokens(tokenizer: Any, text: str) -> Tensor:
    """Which tokens of a prompt each of its phrases has, by the characters that they stand for: bool [P, L]"""
    cleaned, places = tokenizer.offsets(text)
    at, rows = 0, []
    for phrase in text.split(BETWEEN):
        said = tokenizer.clean(phrase)
        start = cleaned.find(said, at) if said else -1
        row = [a < start + len(said) and b > start for a, b in places]
        if start < 0 or not any(row):
            raise BadData(f"the phrase {phrase!r} of the prompt {text!r} has no token: use another name for it")
        at = start + len(said)
        rows.append(row)
    return torch.tensor(rows)


def phrase_scores(p: Tensor, tokens: Tensor) -> Tensor:
    """A phrase's score is the mean over its tokens: [..., L], bool [P, L] -> [..., P]"""
    share = tokens.to(p.dtype)
    return p[..., : share.shape[1]] @ (share / share.sum(1, keepdim=True)).T


@dataclass(frozen=True)
class Regions:
    """What the head says of N places."""

    logits: Tensor  # [B, N, L] of place and token
    offsets: Tensor  # [B, N, 4] of its anchor
    centre: Tensor  # [B, N] logits of centreness
    real: Tensor  # [B, L] False at padding


class GroundingHead(nn.Module):
    """`depth` layers over a pyramid of maps and the words, then a product of places and words, boxes and centreness.

    With `fusion`, before each layer places and words read one another and a block of attention follows on the words;
    without, they meet in the product only.
    """

    def __init__(self, dim: int, depth: int, heads: int, levels: int, fusion: bool):
        super().__init__()
        count = depth if fusion else 0
        self.fuse = nn.ModuleList(BidirectionalAttention(dim, heads, 1 / depth) for _ in range(count))
        self.read = nn.ModuleList(Block(dim, heads) for _ in range(count))
        self.look = nn.ModuleList(_layer(dim) for _ in range(depth))
        self.words = nn.Linear(dim, dim)
        self.word_bias = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.tensor(-math.log((1 - PRIOR) / PRIOR)))  # b_0
        self.boxes, self.centre = nn.Linear(dim, 4), nn.Linear(dim, 1)
        self.stretch = nn.Parameter(torch.ones(levels))  # of the offsets of a level
        nn.init.normal_(self.boxes.weight, std=0.01)
        nn.init.zeros_(self.boxes.bias)

    def forward(self, maps: Sequence[Tensor], words: Tensor, real: Tensor, scale: Tensor) -> Regions:
        """maps [B, D, h, w] each, words [B, L, D], real [B, L], scale 1 / exp(g)"""
        grids = [m.shape[-2:] for m in maps]
        counts = [h * w for h, w in grids]
        for i, look in enumerate(self.look):
            if len(self.fuse):
                places, words = self.fuse[i](flat(maps), words, real)  # [B, N, D], [B, L, D]
                words = self.read[i](words, real[:, None, None])
                maps = [p.transpose(1, 2).unflatten(2, g) for p, g in zip(places.split(counts, 1), grids)]
            maps = [m + look(m) for m in maps]
        regions = flat(maps)  # [B, N, D]
        stretch = self.stretch.repeat_interleave(torch.tensor(counts, device=regions.device))  # [N]
        logits = self.compare(regions, words, scale)
        return Regions(logits, self.boxes(regions) * stretch[:, None], self.centre(regions)[..., 0], real)

    def compare(self, regions: Tensor, words: Tensor, scale: Tensor) -> Tensor:
        """O W'^T / exp(g) + b_l + b_0 in fp32: [B, N, D], [B, L, D] -> [B, N, L]"""
        W = F.normalize(words.float(), dim=-1)
        b_l = W @ self.word_bias  # [B, L]
        return scale * regions.float() @ self.words(W / 2).float().transpose(1, 2) + b_l[:, None] + self.bias


def flat(maps: Sequence[Tensor]) -> Tensor:
    """Maps [B, D, h, w] as places, level after level: [B, N, D]"""
    return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)


def _layer(dim: int) -> nn.Module:
    groups = next(g for g in (8, 4, 2, 1) if dim % g == 0)
    return nn.Sequential(nn.Conv2d(dim, dim, 3, 1, 1, bias=False), nn.GroupNorm(groups, dim), nn.ReLU())
