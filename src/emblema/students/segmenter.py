"""A small convolutional network that gives each place of a picture a vector, to be compared with class texts."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Segmenter(nn.Module):
    """Four stages of stride 2, joined from the deepest up at a quarter of the picture's size.

    `forward` gives the vectors [B, dim, H/4, W/4]; `text_scores` is a 1x1 convolution whose rows are class texts.
    """

    def __init__(self, dim: int, width: int = 32):
        super().__init__()
        widths = [width, 2 * width, 3 * width, 4 * width]
        self.stages = nn.ModuleList(nn.Sequential(_conv(a, b, 2), _conv(b, b, 1)) for a, b in zip([3, *widths], widths))
        self.sides = nn.ModuleList(nn.Conv2d(w, 2 * width, 1) for w in widths[1:])
        self.out = nn.Sequential(_conv(2 * width, 2 * width, 1), nn.Conv2d(2 * width, dim, 1))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> [B, dim, H/4, W/4]"""
        x, maps = images.float() / 127.5 - 1, []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        *finer, joined = [side(x) for side, x in zip(self.sides, maps[1:])]
        for side in reversed(finer):
            joined = side + F.interpolate(joined, side.shape[-2:], mode="bilinear", align_corners=False)
        return self.out(joined)


def text_scores(features: Tensor, text: Tensor, scale: float | None = None) -> Tensor:
    """[B, D, h, w] and [C, D] -> [B, C, h, w]: dot products, or `scale` times the cosines of unit texts."""
    features = features.float() if scale is None else scale * F.normalize(features.float(), dim=1)
    return F.conv2d(features, text[:, :, None, None])


def _conv(a: int, b: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.GroupNorm(8, b), nn.ReLU())
