"""A two-tower model as a segmenter of classes given in words: nothing is learnt.

A feature of each place is compared with the class texts: MaskCLIP (Zhou, Loy and Dai, ECCV 2022, arXiv 2112.01071) for
`features="values"`. Fields say how; all of them belong to the protocol of a measurement.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from emblema.core.boxes import NOTHING
from emblema.core.errors import BadData

FEATURES = ("local", "values", "plain")
BACKGROUNDS = ("none", "prompts", "threshold", "cam")
WORDS = ("background", "sky", "grass", "ground", "wall", "water", "forest", "landscape", "texture")
TOGETHER = 8  # pictures or windows of one size


@dataclass(frozen=True, kw_only=True)
class DenseFeatures:
    """A unit feature for each place of a picture.

    `features`: "local" pools each place with its neighbours, "values" is MaskCLIP's value path, "plain" the patch
    tokens. The picture's shorter side becomes `enlarge` times what the tower was trained at, the longer keeps the
    ratio, both rounded to whole patches.
    """

    features: str = "local"
    radius: int = 1  # of the neighbourhood of "local", in patches
    enlarge: float = 2.0

    def __post_init__(self) -> None:
        if self.features not in FEATURES:
            raise BadData(f"features {self.features!r}: choose {', '.join(FEATURES)}")

    def pixels(self, model: Any, image: Image.Image) -> Tensor:
        """The enlarged picture: uint8 [3, H, W]."""
        patch = getattr(getattr(model.vlm.image, "config", None), "patch_size", 32)
        times = self.enlarge * model.preprocess.size / min(image.size)
        width, height = (max(2 * self.radius + 1, round(n * times / patch)) * patch for n in image.size)
        whole = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        whole = whole.view(image.height, image.width, 3).permute(2, 0, 1)[None]
        return F.interpolate(whole, (height, width), mode="bicubic", antialias=True)[0]

    def __call__(self, model: Any, parts: Sequence[Tensor]) -> list[Tensor]:
        """uint8 [3, H, W] each -> [h, w, D] unit each; parts of one size are encoded together."""
        out: list[Tensor | None] = [None] * len(parts)
        for shape in dict.fromkeys(part.shape for part in parts):
            rows = [i for i, part in enumerate(parts) if part.shape == shape]
            for start in range(0, len(rows), TOGETHER):
                some = rows[start : start + TOGETHER]
                z = model.encoder.dense(torch.stack([parts[i] for i in some]), self.features, self.radius)
                for i, one in zip(some, z):
                    out[i] = one
        return out  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class ZeroShotSegmenter(DenseFeatures):
    """`segment(pictures, labels)` of a model and words.

    `background` says what a pixel of no class is. "none": there is no such pixel. "prompts": the words of
    `backgrounds` compete with the labels. "threshold": the best label's probability is below `threshold`. "cam": each
    label's map is stretched to 0..1 over the picture, and nothing has the score (1 - best)^2 (CLIP-ES).
    With `window` (in units of the size the tower was trained at) the enlarged picture is read in windows `stride` of
    themselves apart, the last ones moved back inside; where they overlap their scores are averaged.
    """

    background: str = "none"
    backgrounds: tuple[str, ...] = WORDS
    threshold: float = 0.5
    window: float = 0.0  # 0: the whole picture at once
    stride: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.background not in BACKGROUNDS:
            raise BadData(f"background {self.background!r}: choose {', '.join(BACKGROUNDS)}")

    @torch.inference_mode()
    def scores(
        self, model: Any, images: Sequence[Image.Image], labels: Sequence[str], templates: Sequence[str] | None = None
    ) -> Iterator[Tensor]:
        """[K, H, W] of each picture at its own size, or [K + 1, H, W] where the last plane is "none of them"."""
        words = [*labels, *(w for w in self.backgrounds if w not in labels)] if self.background == "prompts" else labels
        z_text = model.class_vectors(list(words), templates)
        side = round(self.window * model.preprocess.size)
        for start in range(0, len(images), TOGETHER):
            some = images[start : start + TOGETHER]
            whole = [self.pixels(model, image) for image in some]
            places = [windows(p.shape[1], p.shape[2], side, max(1, round(side * self.stride))) for p in whole]
            cut = [p[:, y : y + h, x : x + w] for p, at in zip(whole, places) for y, x, h, w in at]
            maps = iter(self(model, cut))
            for image, pixels, at in zip(some, whole, places):
                cosine = [(next(maps) @ z_text.T).permute(2, 0, 1) for _ in at]
                if len(at) > 1:
                    cosine = [averaged(cosine, at, (pixels.shape[1], pixels.shape[2]))]
                yield self._with_background(_resized(cosine[0], image.height, image.width), model, len(labels))

    def _with_background(self, cosine: Tensor, model: Any, classes: int) -> Tensor:
        if self.background == "prompts":
            return torch.cat([cosine[:classes], cosine[classes:].amax(0, keepdim=True)])
        if self.background == "threshold":
            probability = (model.vlm.scale.cpu() * cosine).softmax(0)
            return torch.cat([probability, torch.full_like(cosine[:1], self.threshold)])
        if self.background == "cam":
            low, high = cosine.amin((1, 2), keepdim=True), cosine.amax((1, 2), keepdim=True)
            cam = (cosine - low) / (high - low).clamp(min=1e-8)
            return torch.cat([cam, (1 - cam.amax(0, keepdim=True)) ** 2])
        return cosine


def label_map(scores: Tensor, classes: int) -> Tensor:
    """[K, H, W] or [K + 1, H, W] -> [H, W] long: the best class of `classes` = K, 255 where it is none of them."""
    best = scores.argmax(0)
    return best.masked_fill(best >= classes, NOTHING)


def windows(height: int, width: int, side: int, step: int) -> list[tuple[int, int, int, int]]:
    """(top, left, height, width) of windows that cover a picture; one window where `side` is 0."""
    if not side:
        return [(0, 0, height, width)]
    h, w = min(side, height), min(side, width)
    along = lambda n, k: [min(i * step, n - k) for i in range(max(n - k + step - 1, 0) // step + 1)]
    return [(y, x, h, w) for y in along(height, h) for x in along(width, w)]


def averaged(maps: Sequence[Tensor], places: Sequence[tuple[int, int, int, int]], size: tuple[int, int]) -> Tensor:
    """Score maps [C, h, w] of windows, enlarged and averaged where they overlap: [C, *size]"""
    total, visits = torch.zeros(len(maps[0]), *size), torch.zeros(size)
    for part, (y, x, h, w) in zip(maps, places):
        total[:, y : y + h, x : x + w] += _resized(part, h, w)
        visits[y : y + h, x : x + w] += 1
    return total / visits


def _resized(scores: Tensor, height: int, width: int) -> Tensor:
    """Bilinear: [C, h, w] -> [C, height, width]"""
    return F.interpolate(scores[None], (height, width), mode="bilinear", align_corners=False)[0]
