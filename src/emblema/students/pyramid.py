"""Maps of a transformer's layers at four scales, joined from the coarsest up: a feature pyramid on one grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AT = 2  # the level that has the transformer's own grid


class Pyramid(nn.Module):
    """Four maps [B, W, h, w] of one grid -> scores of classes [B, C, 4 h, 4 w].

    The maps are enlarged 4 and 2 times, left, and halved (DenseCLIP's neck for image transformers, after ViTDet's
    forerunners), brought to one width and added from the coarsest to the finest (Lin et al. 2017, arXiv 1612.03144).
    `more` channels join the level that has the grid itself.
    """

    def __init__(self, width: int, inner: int, classes: int, more: int = 0):
        super().__init__()
        twice = lambda: nn.ConvTranspose2d(width, width, 2, 2)
        self.scales = nn.ModuleList(
            [
                nn.Sequential(twice(), nn.GroupNorm(1, width), nn.GELU(), twice()),
                twice(),
                nn.Identity(),
                nn.MaxPool2d(2, 2, ceil_mode=True),
            ]
        )
        self.sides = nn.ModuleList(nn.Conv2d(width + more * (i == AT), inner, 1) for i in range(4))
        self.head = nn.Sequential(
            nn.Conv2d(inner, inner, 3, 1, 1, bias=False),
            nn.GroupNorm(8, inner),
            nn.ReLU(),
            nn.Conv2d(inner, classes, 1),
        )

    def forward(self, maps: Sequence[Tensor], scores: Tensor | None = None) -> Tensor:
        """`scores` [B, more, h, w] join level `AT`."""
        scaled = [scale(x) for scale, x in zip(self.scales, maps)]
        if scores is not None:
            scaled[AT] = torch.cat([scaled[AT], scores], 1)
        *finer, joined = [side(x) for side, x in zip(self.sides, scaled)]
        for side in reversed(finer):
            joined = side + F.interpolate(joined, side.shape[-2:], mode="bilinear", align_corners=False)
        return self.head(joined)
