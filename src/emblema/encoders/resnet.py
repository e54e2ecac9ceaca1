"""CLIP's modified ResNet: a stem of three convolutions, box-filtered strides, and attention in place of the mean.

The ResNet-D stem ends in a 2x2 mean instead of a max. No convolution but the first has a stride: a 2x2 mean
(the "rect-2" filter) thins the map after it, in the main path and in the shortcut. The attention pool is the
projection into the joint space as well, so `pool` gives [B, dim] and `project` changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.errors import NoSuchDoor
from emblema.core.tokens import Edit, Tokens
from emblema.encoders.block import attend
from emblema.encoders.tower import ImageTower
from emblema.encoders.vit import CLIP_MEAN, CLIP_STD


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Shape of a modified ResNet. Defaults are CLIP's RN50 (joint dim 1024)."""

    kind: str = "resnet"
    layers: tuple[int, ...] = (3, 4, 6, 3)  # bottlenecks of the four stages
    width: int = 64  # channels after the stem; the last stage has 32 times as many
    heads: int = 32  # of the attention pool
    image_size: int = 224
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def build(self, dim: int) -> ModifiedResNet:
        return ModifiedResNet(self, dim)


class ModifiedResNet(ImageTower):
    """A convolutional image tower. `width` is the channels of its map, [mean; cells] are its tokens."""

    depth = 0  # no transformer layers: prompts and probes cannot enter

    def __init__(self, config: ResNetConfig, dim: int):
        super().__init__(config.image_size, config.mean, config.std)
        if config.image_size % 32:
            raise ValueError(f"image size {config.image_size} is not a multiple of 32, the stride of a ResNet")
        self.config, self.dim, self.width = config, dim, config.width * 32
        w = config.width
        self.stem = nn.Sequential(_conv(3, w // 2, 3, stride=2), _conv(w // 2, w // 2, 3), _conv(w // 2, w, 3))
        stages, channels = [], w
        for i, count in enumerate(config.layers):
            inner = w * 2**i
            blocks = [Bottleneck(channels, inner, 2 if i else 1)]
            blocks += [Bottleneck(4 * inner, inner) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
            channels = 4 * inner
        self.stages = nn.Sequential(*stages)
        self.attention_pool = MapAttention(config.image_size // 32, self.width, config.heads, dim)

    def map(self, raw: Tensor) -> Tensor:
        """Images -> the last feature map [B, width, H / 32, W / 32]."""
        x = self.normalise(raw).to(memory_format=torch.channels_last)  # faster on CPUs, and on GPUs in half precision
        return self.stages(F.avg_pool2d(self.stem(x), 2))

    def embed(self, raw: Tensor) -> Tokens:
        cells = self.map(raw)
        batch, _, height, width = cells.shape
        x = cells.flatten(2).transpose(1, 2)  # [B, H*W, width]
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.attention_pool.positions_at(height, width)
        pool_at = torch.zeros(batch, dtype=torch.long, device=x.device)
        return Tokens(x, pool_at, first_patch=1, grid=(height, width))

    def pool(self, tokens: Tokens) -> Tensor:
        """[mean; cells] -> [B, dim]: the mean asks, all tokens answer."""
        return self.attention_pool(tokens.x)

    def project(self, x: Tensor) -> Tensor:
        return x

    def dense(self, raw: Tensor | Tokens, edit: Edit | None = None, values: bool = True) -> Tensor:
        """Value path of the attention pool at each cell [B, H, W, dim]; the tower has no other dense feature."""
        if edit is not None:
            raise NoSuchDoor("ModifiedResNet has no transformer layers, so prompts cannot enter; choose a ViT tower")
        tokens = raw if isinstance(raw, Tokens) else self.embed(raw)
        assert tokens.grid is not None
        pool = self.attention_pool
        cells = tokens.patches() - pool.positions_at(*tokens.grid)[1:]  # MaskCLIP reads the map itself
        return pool.out(pool.value(cells)).unflatten(1, tokens.grid)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a residual; a stride is a box filter after the 3x3 and in the shortcut."""

    def __init__(self, channels: int, inner: int, stride: int = 1):
        super().__init__()
        self.stride = stride
        self.reduce = _conv(channels, inner, 1)
        self.filter = _conv(inner, inner, 3)
        self.expand = _conv(inner, 4 * inner, 1, relu=False)
        changes = stride > 1 or channels != 4 * inner
        self.shortcut = _conv(channels, 4 * inner, 1, relu=False) if changes else nn.Identity()
        nn.init.zeros_(self.expand[1].weight)  # type: ignore[arg-type]  # each block begins as its shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self._thin(self.filter(self.reduce(x)))
        return F.relu(self.expand(y) + self.shortcut(self._thin(x)))

    def _thin(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride) if self.stride > 1 else x


class MapAttention(nn.Module):
    """Attention with the mean of a feature map as its one query, then a projection into the joint space."""

    def __init__(self, side: int, width: int, heads: int, dim: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"{width} channels are not a multiple of {heads} heads")
        self.side, self.heads = side, heads
        self.positions = nn.Parameter(torch.randn(side * side + 1, width) * width**-0.5)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, dim)
        for linear in (self.query, self.key, self.value, self.out):
            nn.init.normal_(linear.weight, std=width**-0.5)

    def positions_at(self, height: int, width: int) -> Tensor:
        """Positions of [mean; cells]; another grid than the trained one is interpolated. [1 + H*W, channels]"""
        if (height, width) == (self.side, self.side):
            return self.positions
        grid = self.positions[1:].unflatten(0, (self.side, self.side)).permute(2, 0, 1)[None]
        grid = F.interpolate(grid.float(), (height, width), mode="bicubic", antialias=True)[0].flatten(1).T
        return torch.cat([self.positions[:1], grid.to(self.positions.dtype)])

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1 + H*W, width] -> [B, dim]"""
        query, key, value = (
            a.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, L, d]
            for a in (self.query(x[:, :1]), self.key(x), self.value(x))
        )
        return self.out(attend(query, key, value).transpose(1, 2).flatten(2)[:, 0])


def _conv(a: int, b: int, kernel: int, stride: int = 1, relu: bool = True) -> nn.Sequential:
    """Convolution, batch norm and (unless a residual follows) ReLU."""
    conv = nn.Conv2d(a, b, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(b), *([nn.ReLU()] if relu else []))
