"""Visual words: a number for each patch, from k-means on the pixels of the data's own pictures.

They stand in for the codes of a discrete autoencoder (DALL-E's in BEiT and FLAVA), which would have to be downloaded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.objectives.generative import patchify

SIDE = 4  # a patch is told by so many pixels squared: a code says colour and coarse form, not texture


class PatchCodes(nn.Module):
    """A frozen codebook. Before `fit` its centres are random colours.

    Args:
        size: number of codes. grid: (H, W) patches of a picture.
    """

    centres: Tensor  # [K, SIDE^2 * 3]

    def __init__(self, size: int, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        self.register_buffer("centres", torch.rand(size, SIDE * SIDE * 3))

    def patches(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> [B, P, SIDE^2 * 3] in 0..1"""
        size = (self.grid[0] * SIDE, self.grid[1] * SIDE)
        return patchify(F.adaptive_avg_pool2d(images.float() / 255, size), SIDE)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> the nearest centre of each patch [B, P]"""
        with torch.autocast(images.device.type, enabled=False):
            return (
                torch.cdist(self.patches(images).flatten(0, 1), self.centres).argmin(1).unflatten(0, (len(images), -1))
            )

    @torch.no_grad()
    def fit(self, images: Tensor, generator: torch.Generator, rounds: int = 10) -> None:
        """Lloyd's algorithm on the patches of pictures. A centre that loses all patches becomes a random patch."""
        x = self.patches(images.to(self.centres.device)).flatten(0, 1)  # [N, C]
        drawn = torch.randint(len(x), (rounds + 1, len(self.centres)), generator=generator).to(x.device)
        centres = x[drawn[0]]
        for again in drawn[1:]:
            nearest = torch.cdist(x, centres).argmin(1)  # [N]
            count = torch.bincount(nearest, minlength=len(centres))  # [K]
            total = torch.zeros_like(centres).index_add(0, nearest, x)
            centres = torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], x[again])
        self.centres.copy_(centres)
