"""A small convolutional network that gives each place of a picture a vector, to be compared with class texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.errors import BadData

if TYPE_CHECKING:
    from emblema.frameworks.vlm import VLM


BODIES = ("auto", "teacher", "scratch")


class Segmenter(nn.Module):
    """Stages of stride 4, 8 and deeper, joined from the deepest up at a quarter of the picture's size.

    `forward` gives the vectors [B, dim, H/4, W/4]; `text_scores` is a 1x1 convolution whose rows are class texts. The
    stages are small ones, or `trunk`, a module that gives their maps and says their widths in `widths`.
    """

    def __init__(self, dim: int, width: int = 32, trunk: nn.Module | None = None):
        super().__init__()
        self.trunk: Any = Small(width) if trunk is None else trunk
        self.sides = nn.ModuleList(nn.Conv2d(w, 2 * width, 1) for w in self.trunk.widths)
        self.out = nn.Sequential(_conv(2 * width, 2 * width, 1), nn.Conv2d(2 * width, dim, 1))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> [B, dim, H/4, W/4]"""
        maps = self.trunk(images.float() / 127.5 - 1)
        *finer, joined = [side(x) for side, x in zip(self.sides, maps)]
        for side in reversed(finer):
            joined = side + F.interpolate(joined, side.shape[-2:], mode="bilinear", align_corners=False)
        return self.out(joined)


class Small(nn.Module):
    """Four stages of two convolutions."""

    def __init__(self, width: int):
        super().__init__()
        widths = [width, 2 * width, 3 * width, 4 * width]
        self.stages = nn.ModuleList(nn.Sequential(_conv(a, b, 2), _conv(b, b, 1)) for a, b in zip([3, *widths], widths))
        self.widths = widths[1:]

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[1:]


class Copied(nn.Module):
    """The convolutions of a hybrid ViT's stem, from stride 4 on, beginning as they are in the teacher.

    Their batch norms keep the teacher's statistics.
    """

    def __init__(self, vlm: VLM):
        super().__init__()
        import timm

        tower: Any = vlm.image
        stem, (_, name, joined) = tower.stem, tower.config.stem.split(":")
        deepest = max(int(s) for s in joined.split("+"))
        self.trunk = timm.create_model(
            name, pretrained=False, features_only=True, out_indices=tuple(range(1, deepest + 1))
        )
        if hasattr(stem.trunk, "blocks"):  # the teacher keeps no stages behind the deepest
            self.trunk.blocks = self.trunk.blocks[: len(stem.trunk.blocks)]  # type: ignore[index, arg-type]
        self.trunk.load_state_dict(stem.trunk.state_dict())
        self.train()
        self.widths = list(self.trunk.feature_info.channels())  # type: ignore[union-attr, operator]

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.trunk(x)

    def train(self, mode: bool = True) -> Copied:
        super().train(mode)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()
        return self


def segmenter(teacher: VLM, width: int, body: str = "auto") -> Segmenter:
    """A student for the teacher's space. Its `body` starts from the "teacher"'s convolutions or from "scratch"; "auto"
    takes the teacher's where there are some."""
    if body not in BODIES:
        raise BadData(f"body {body!r}: choose {', '.join(BODIES)}")
    has = hasattr(getattr(teacher.image, "stem", None), "trunk")
    if body == "teacher" and not has:
        raise BadData('body "teacher": this teacher has no convolutions to start from; choose "scratch"')
    return Segmenter(teacher.dim, width, Copied(teacher) if has and body != "scratch" else None)


def text_scores(features: Tensor, text: Tensor, scale: float | None = None) -> Tensor:
    """[B, D, h, w] and [C, D] -> [B, C, h, w]: dot products, or `scale` times the cosines of unit texts."""
    features = features.float() if scale is None else scale * F.normalize(features.float(), dim=1)
    return F.conv2d(features, text[:, :, None, None])


def _conv(a: int, b: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.GroupNorm(8, b), nn.ReLU())
