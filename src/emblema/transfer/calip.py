"""CALIP: attention without parameters between the places of a picture and the class texts; nothing is trained.

Texts become mixtures of places, places mixtures of texts; the two updated views vote with weights that are searched
on validation pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emblema.core.batch import ImageInput, Level
from emblema.core.card import Card
from emblema.engine.inputs import Inputs
from emblema.parts.prompts import Borrowed
from emblema.transfer.base import Transfer

GRID_2 = torch.linspace(0.0, 2.0, 41)
GRID_3 = torch.linspace(0.0, 0.1, 21)


@dataclass(kw_only=True)
class CALIP(Transfer):
    card = Card(
        name="calip",
        title="CALIP: Zero-Shot Enhancement of CLIP with Parameter-free Attention",
        paper="2209.14169",
        year=2023,
        section="6.3.3 other",
        equation="logits = s (z . t + b_2 z . t^a + b_3 z^a . t),  t^a = softmax_S(A) F,  z^a = pool(softmax_C(A) T)",
        reads=Level.PATCHES,
        needs=("no pictures",),
        claim="with weights chosen on validation pictures, CALIP is at least as accurate as zero-shot",
        oracle="b_2 = b_3 = 0: zero-shot; flat attention changes no answer",
        deviations=(
            "the weights are searched on validation pictures; the official code searches them on the test labels",
            "the grid begins at 0, officially at 0.001, so that zero-shot can win",
        ),
    )
    sharpness: float = 2.0  # A is multiplied by it before both softmaxes (official code); 0.5: the paper's
    renormalise: bool = False  # t^a and z^a to unit length
    weights: tuple[float, float] = (0.2, 0.01)  # b_2, b_3 where there are no validation pictures

    def build(self, vlm, class_names):
        return Attention(vlm, self.hand(vlm, class_names), self.sharpness, self.renormalise, self.weights)

    def select(self, module, val: Inputs):
        parts = [torch.cat(p) for p in zip(*(module.parts(b.x) for b in val.in_order()))]
        best = -1.0
        for b_2 in GRID_2:
            for b_3 in GRID_3:
                right = ((parts[0] + b_2 * parts[1] + b_3 * parts[2]).argmax(-1) == val.labels).float().mean().item()
                if right > best:
                    best, module.b = right, nn.Parameter(torch.stack([b_2, b_3]), requires_grad=False)


class Attention(Borrowed):
    hand: Tensor  # [C, D]

    def __init__(self, vlm, hand: Tensor, sharpness: float, renormalise: bool, weights: tuple[float, float]):
        super().__init__(vlm)
        self.sharpness, self.renormalise = sharpness, renormalise
        self.register_buffer("hand", hand)
        self.b = nn.Parameter(torch.tensor(weights), requires_grad=False)  # chosen, not trained

    def forward(self, x: ImageInput) -> Tensor:
        plain, by_text, by_place = self.parts(x)
        return plain + self.b[0] * by_text + self.b[1] * by_place

    def parts(self, x: ImageInput) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of z . t, z . t^a and z^a . t: each [B, C]."""
        places, scale = x.patches.flatten(1, 2), self.vlm.scale  # [B, S, D]
        a = self.sharpness * places @ self.hand.T  # [B, S, C]
        texts = a.softmax(1).mT @ places  # t^a [B, C, D]
        mixed = a.softmax(2) @ self.hand  # [B, S, D]
        image = mixed.mean(1) + mixed.amax(1)  # z^a [B, D]
        if self.renormalise:
            texts, image = (torch.nn.functional.normalize(v, dim=-1) for v in (texts, image))
        by_text = scale * torch.einsum("bd,bcd->bc", x.pooled, texts)
        return scale * x.pooled @ self.hand.T, by_text, scale * image @ self.hand.T
