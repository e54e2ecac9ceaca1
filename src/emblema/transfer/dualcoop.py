"""DualCoOp: a positive and a negative prompt for each class, read where in the picture the class is.

Each place of the picture is compared with both prompts; places are weighted by how well the positive one fits. Pictures
have several classes, and for many classes it is not known whether they are there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from emblema.core.batch import ImageInput, Level
from emblema.core.card import Card
from emblema.core.errors import BadData
from emblema.core.method import Optim
from emblema.engine import seed
from emblema.engine.inputs import Inputs
from emblema.parts.prompts import Borrowed, PromptedText
from emblema.transfer.base import Transfer, coop_recipe


@dataclass(kw_only=True)
class DualCoOp(Transfer):
    card = Card(
        name="dualcoop",
        title="DualCoOp: Fast Adaptation to Multi-Label Recognition with Limited Annotations",
        paper="2206.09541",
        year=2022,
        section="6.3.1 text prompt",
        equation="L = w ASL(5 sum_p softmax_p(a+) a+, 5 sum_p softmax_p(a+) a-),  a = 20 F_p . t",
        reads=Level.PATCHES,
        needs=("values", "multi-label"),
        protocol="multi-label",
        claim="with half of the labels known, dual prompts reach a higher mAP than one positive prompt",
        oracle="equal weights: mean pooling; gamma = clip = 0: binary cross-entropy of the two-way softmax",
        deviations=(
            "image transformers give places by their value path; officially a ResNet attention pool, whose mean token "
            "is one more place",
            "trained on stored views, not on fresh crops",
        ),
    )
    context_length: int = 16
    dual: bool = True  # False: the positive prompt alone, against 0
    known: float = 1.0  # share of the labels that are kept; the others count as unknown
    sharpness: float = 20.0  # of the weights of places
    scale: float = 5.0
    gamma: tuple[float, float] = (1.0, 2.0)  # of present and absent classes
    clip: float = 0.05  # added to the probability of absence
    weight: float = 0.03  # of the loss, which is a sum
    optim: Optim = field(default_factory=lambda: coop_recipe())

    def build(self, vlm, class_names):
        return DualPrompts(vlm, class_names, self.context_length, self.dual, self.sharpness, self.scale)

    def check(self, train: Inputs):
        super().check(train)
        if "labels" not in train.targets:
            raise BadData(f"{self.card.name} learns from several labels a picture: this data has one label a picture")

    def learn(self, module, train: Inputs, on_step=None):
        labels = train.targets["labels"].clone()
        generator = seed.generator(self.seed, "known labels")
        labels[torch.rand(labels.shape, generator=generator) >= self.known] = -1
        if not (labels >= 0).any():
            raise BadData(f"no label is known: {self.known:.0%} of {labels.numel()} labels were kept")
        train.targets["labels"] = labels
        super().learn(module, train, on_step)

    def losses(self, module, batch):
        present, absent = module.both(batch.x)
        loss = asymmetric(present, absent, batch.targets["labels"], self.gamma, self.clip)
        return {"asymmetric": self.weight * loss}


class DualPrompts(Borrowed):
    def __init__(self, vlm, class_names, length: int, dual: bool, sharpness: float, scale: float):
        super().__init__(vlm)
        self.positive = PromptedText(vlm, class_names, length)
        self.negative = PromptedText(vlm, class_names, length) if dual else None
        self.sharpness, self.scale = sharpness, scale

    def forward(self, x: ImageInput) -> Tensor:
        """log-odds of presence: [B, C]"""
        present, absent = self.both(x)
        return present - absent

    def both(self, x: ImageInput) -> tuple[Tensor, Tensor]:
        """Evidence for presence and for absence: each [B, C]."""
        places = x.values.flatten(1, 2)  # F [B, S, D]
        a_present = self.sharpness * places @ self.positive().T  # [B, S, C]
        w = a_present.softmax(1)
        present = self.scale * (w * a_present).sum(1)
        if self.negative is None:
            return present, torch.zeros_like(present)
        return present, self.scale * (w * (self.sharpness * places @ self.negative().T)).sum(1)


def asymmetric(
    present: Tensor, absent: Tensor, labels: Tensor, gamma: tuple[float, float] = (1.0, 2.0), clip: float = 0.05
) -> Tensor:
    """A sum over the labels that are 1 or 0, of two-way logits [B, C]; -1 is unknown and left out."""
    p = torch.sigmoid(present - absent)
    q = (1 - p + clip).clamp(max=1)  # of absence
    log_p, log_q = p.clamp(min=1e-8).log(), q.clamp(min=1e-8).log()
    with torch.no_grad():
        w_present, w_absent = (1 - p) ** gamma[0], (1 - q) ** gamma[1]
    return -(w_present * log_p * (labels == 1) + w_absent * log_q * (labels == 0)).sum()
