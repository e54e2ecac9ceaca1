"""CLIP-Adapter: a bottleneck on the image feature, mixed with the feature it came from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from emblema.core.batch import ImageInput, Level
from emblema.core.card import Card
from emblema.frameworks.vlm import unit
from emblema.parts.prompts import Borrowed
from emblema.transfer.base import Transfer


@dataclass(kw_only=True)
class CLIPAdapter(Transfer):
    card = Card(
        name="clip_adapter",
        title="CLIP-Adapter: Better Vision-Language Models with Feature Adapters",
        paper="2110.04544",
        year=2024,
        section="6.3.2 feature adapter",
        equation="L = CE(s n(r A(f) + (1 - r) f) . t_c, y), A = ReLU W_2 ReLU W_1",
        reads=Level.POOLED,
        claim="with 16 shots a class, CLIP-Adapter's accuracy beats zero-shot",
        oracle="ratio 0: zero-shot; ratio 1: the bottleneck alone",
        deviations=("the ratio is 0.2 for all data, as in the code; the paper tunes it for each data set",),
    )
    ratio: float = 0.2  # r
    reduction: int = 4

    def build(self, vlm, class_names):
        return Adapter(vlm, self.hand(vlm, class_names), self.ratio, self.reduction)


class Adapter(Borrowed):
    """The features are mixed as they are, before they are made unit vectors."""

    hand: Tensor  # [C, D]

    def __init__(self, vlm, hand: Tensor, ratio: float, reduction: int):
        super().__init__(vlm)
        dim, narrow = hand.shape[1], max(hand.shape[1] // reduction, 1)
        self.register_buffer("hand", hand, persistent=False)
        self.ratio = ratio
        self.adapt = nn.Sequential(
            *(nn.Linear(dim, narrow, bias=False), nn.ReLU()), *(nn.Linear(narrow, dim, bias=False), nn.ReLU())
        )

    def forward(self, x: ImageInput) -> Tensor:
        f = x.raw  # [B, D]
        return self.vlm.logits(unit(self.ratio * self.adapt(f) + (1 - self.ratio) * f), self.hand)
