"""VP: learn a frame of pixels that is laid over every picture; the model and the words stay as they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.batch import ImageInput, Level
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.parts.prompts import Borrowed
from emblema.transfer.base import Transfer


@dataclass(kw_only=True)
class VP(Transfer):
    card = Card(
        name="vp",
        title="Exploring Visual Prompts for Adapting Large-Scale Models",
        paper="2203.17274",
        year=2022,
        section="6.3.1 visual prompt",
        equation="L = CE(s f(x + v) . t_c, y)",
        reads=Level.PIXELS,
        claim="with 16 shots a class, VP's accuracy beats zero-shot",
        oracle="v = 0: zero-shot; the gradient of v is that of the pixels in the frame; 69,840 parameters",
        deviations=(
            "30 epochs with a tenth of them to warm up, officially 1,000 with 1,000 steps: every step runs the image "
            "tower forth and back",
            "the logit scale is the model's own; officially it is clamped, but never updated either",
        ),
    )
    shape: str = "frame"  # or "patch": the upper left corner; "random": a patch in another place at each step
    width: int = 30  # pixels, for pictures of 224; in proportion for others
    optim: Optim = field(
        default_factory=lambda: Optim(
            algorithm="sgd", lr=40.0, weight_decay=0.0, warmup=0.1, clip_norm=None, epochs=30.0, batch_size=256
        )
    )

    def build(self, vlm, class_names):
        return PixelPrompt(vlm, self.hand(vlm, class_names), self.shape, self.width)

    def losses(self, module: Any, batch: Any):
        place = torch.rand(2, generator=batch.generator) if module.shape == "random" else None
        return {"cross_entropy": F.cross_entropy(module(batch.x, place), batch.labels)}


class PixelPrompt(Borrowed):
    """v from N(0, 1), in units of normalised pixels."""

    hand: Tensor  # [C, D]

    def __init__(self, vlm, hand: Tensor, shape: str, width: int):
        super().__init__(vlm)
        size = vlm.image.image_size
        p, inner = round(width * size / 224), size - 2 * round(width * size / 224)
        sides = {"frame": [(p, size), (p, size), (inner, p), (inner, p)], "patch": [(p, p)], "random": [(p, p)]}
        if shape not in sides:
            raise ValueError(f'shape={shape!r}: use "frame", "patch" or "random"')
        self.shape, self.size = shape, size
        self.register_buffer("hand", hand, persistent=False)
        self.sides = nn.ParameterList(torch.randn(3, *side) for side in sides[shape])  # upper, lower, left, right

    def prompt(self, place: Tensor | None = None) -> Tensor:
        """v, zero outside the frame or patch: [3, S, S]. `place` [2] in 0..1 moves a patch from the upper left."""
        if self.shape == "frame":
            upper, lower, left, right = self.sides
            hole = left.new_zeros(3, left.shape[1], left.shape[1])
            return torch.cat([upper, torch.cat([left, hole, right], 2), lower], 1)
        (patch,) = self.sides
        free = self.size - patch.shape[1]
        y, x = (0, 0) if place is None else (place * (free + 1)).long().tolist()
        return F.pad(patch, (x, free - x, y, free - y))

    def forward(self, x: ImageInput, place: Tensor | None = None) -> Tensor:
        images = self.vlm.image.normalise(x.pixels) + self.prompt(place)  # type: ignore[operator]
        return self.vlm.logits(self.vlm.encode_image(images), self.hand)
