"""Views of pictures and words: whole batches at once, every random number from the generator that is passed.

Pictures come as canvases, uint8 [B, 4, S, S] with alpha, so that a cut-out can be put on any background. One
sampling grid does crop, zoom, turn and flip together, which on a CPU is several times faster than a picture
at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Views:
    """How strongly pictures are varied while training. All off gives the evaluation view."""

    scale: tuple[float, float] = (0.5, 1.0)  # share of the canvas area that is seen
    ratio: float = 4 / 3  # aspect of the crop is between 1/ratio and ratio
    turn: float = 0.0  # degrees, each way
    flip: float = 0.5
    jitter: float = 0.2  # brightness, contrast and saturation, each way
    hue: float = 0.0  # share of the colour circle, each way
    grey: float = 0.0
    blur: float = 0.0  # probability of a box blur
    background: bool = True  # a random plain colour behind transparent pictures; else white

    def __call__(self, canvases: Tensor, size: int, generator: torch.Generator) -> Tensor:
        """uint8 [B, 3|4, S, S] -> uint8 [B, 3, size, size]"""
        x = canvases.float()
        x = _sample(x, self._grid(len(x), size, generator))  # [B, 3|4, size, size], transparent outside
        x = flatten(x, self._backgrounds(len(x), generator))
        x = self._colours(x, generator)
        return x.round_().clamp_(0, 255).to(torch.uint8)

    def _grid(self, count: int, size: int, generator: torch.Generator) -> Tensor:
        """Where each output pixel looks: [B, size, size, 2] in -1..1 of the canvas."""
        u = torch.rand(count, 6, generator=generator)
        low, high = self.scale
        area = low + (high - low) * u[:, 0]
        aspect = torch.exp((2 * u[:, 1] - 1) * math.log(self.ratio))
        half = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], -1).clamp(max=1)  # [B, 2] x, y
        centre = (2 * u[:, 2:4] - 1) * (1 - half)
        mirror = torch.where(u[:, 4] < self.flip, -1.0, 1.0)
        angle = (2 * u[:, 5] - 1) * math.radians(self.turn)
        cos, sin = angle.cos(), angle.sin()
        rows = [
            torch.stack([mirror * cos * half[:, 0], -sin * half[:, 1], centre[:, 0]], -1),
            torch.stack([mirror * sin * half[:, 0], cos * half[:, 1], centre[:, 1]], -1),
        ]
        return F.affine_grid(torch.stack(rows, 1), [count, 1, size, size], align_corners=False)

    def _backgrounds(self, count: int, generator: torch.Generator) -> Tensor:
        """A colour for each picture, white for about a third: [B, 3, 1, 1] in 0..255."""
        colours = 255 * torch.rand(count, 3, generator=generator)
        plain = torch.rand(count, generator=generator) < (0.35 if self.background else 2)
        colours[plain] = 255.0
        return colours[..., None, None]

    def _colours(self, x: Tensor, generator: torch.Generator) -> Tensor:
        u = torch.rand(len(x), 6, generator=generator)[..., None, None, None]
        grey = x.mul(GREY.to(x)).sum(1, keepdim=True)  # [B, 1, size, size]
        j = self.jitter
        if j:
            x = x * (1 + j * (2 * u[:, 0] - 1))
            x = x + (1 - 1 / (1 + j * (2 * u[:, 1] - 1))) * (grey.mean((2, 3), keepdim=True) - x)
            x = x + j * (2 * u[:, 2] - 1) * (x - grey)
        if self.hue:
            x = torch.einsum("bij,bjhw->bihw", _hue(2 * math.pi * self.hue * (2 * u[:, 3].flatten() - 1)), x)
        if self.grey:
            x = torch.where(u[:, 4] < self.grey, grey.expand_as(x), x)
        if self.blur:
            x = torch.where(u[:, 5] < self.blur, F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), x)
        return x


MOCO = Views(scale=(0.2, 1.0), jitter=0.4, hue=0.1, grey=0.2, blur=0.5)  # MoCo v2's
SIMCLR = Views(scale=(0.08, 1.0), jitter=0.4, hue=0.1, grey=0.2, blur=0.5)
GREY = torch.tensor([0.299, 0.587, 0.114])[:, None, None]


def flatten(x: Tensor, background: Tensor) -> Tensor:
    """RGBA float [B, 4, H, W] over a background [B|1, 3, H|1, W|1], both 0..255 -> [B, 3, H, W]; RGB passes."""
    if x.shape[1] == 3:
        return x
    alpha = x[:, 3:] / 255
    return alpha * x[:, :3] + (1 - alpha) * background


def plain_view(canvases: Tensor, size: int, background: tuple[int, int, int] = (255, 255, 255)) -> Tensor:
    """The evaluation view: the whole canvas over a plain colour. uint8 [B, 3|4, S, S] -> uint8 [B, 3, size, size]"""
    x = flatten(canvases.float(), torch.tensor(background, dtype=torch.float32).view(1, 3, 1, 1))
    if x.shape[-1] != size:
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return x.round_().clamp_(0, 255).to(torch.uint8)


def _sample(x: Tensor, grid: Tensor) -> Tensor:
    """Bilinear sampling; colours are weighted by alpha so that transparent pixels do not bleed into edges."""
    if x.shape[1] == 3:
        return F.grid_sample(x, grid.to(x), padding_mode="reflection", align_corners=False)
    alpha = x[:, 3:]
    x = F.grid_sample(torch.cat([x[:, :3] * alpha / 255, alpha], 1), grid.to(x), align_corners=False)
    alpha = x[:, 3:]
    return torch.cat([x[:, :3] * 255 / alpha.clamp(min=1), alpha], 1)


def _hue(angle: Tensor) -> Tensor:
    """Rotations about the grey axis [B] -> [B, 3, 3]"""
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    third = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    return cos * torch.eye(3) + (1 - cos) * third + sin * cross
