"""TaskRes: leave the text classifier as it is and learn a residual to each of its rows."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from emblema.core.batch import ImageInput, Level
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.frameworks.vlm import unit
from emblema.parts.prompts import Borrowed, clean
from emblema.transfer.base import Transfer, coop_recipe


@dataclass(kw_only=True)
class TaskRes(Transfer):
    card = Card(
        name="task_res",
        title="Task Residual for Tuning Vision-Language Models",
        paper="2211.10277",
        year=2023,
        section="6.3.3 other",
        equation="L = CE(s z . n(t_c + alpha x_c), y)",
        reads=Level.POOLED,
        closed=True,
        claim="with 16 shots a class, TaskRes's accuracy beats zero-shot",
        oracle="x = 0: zero-shot with the mean of raw text features; plain SGD: alpha scales the rate by alpha squared",
        deviations=(
            "underscores in class names become spaces, officially they stay",
            "the enhanced base (a text projection tuned beforehand by the authors) is left out",
        ),
    )
    alpha: float = 0.5
    optim: Optim = field(
        default_factory=lambda: coop_recipe(
            algorithm="adam", betas=(0.9, 0.999), eps=1e-8, batch_size=256, epochs=100.0
        )
    )

    def build(self, vlm, class_names):
        return Residual(vlm, raw_texts(vlm, class_names, self.wording), self.alpha)


class Residual(Borrowed):
    base: Tensor  # [C, D]

    def __init__(self, vlm, base: Tensor, alpha: float):
        super().__init__(vlm)
        self.register_buffer("base", base, persistent=False)
        self.residual, self.alpha = nn.Parameter(torch.zeros_like(base)), alpha  # x

    def forward(self, x: ImageInput) -> Tensor:
        return self.vlm.logits(x.pooled, unit(self.base + self.alpha * self.residual))


@torch.no_grad()
def raw_texts(vlm, class_names, templates) -> Tensor:
    """Mean over templates of text features that are not normalised: [C, D]."""
    texts = [t.replace("{}", clean(name)) for name in class_names for t in templates]
    return vlm.text.encode(texts).float().unflatten(0, (len(class_names), len(templates))).mean(1)
