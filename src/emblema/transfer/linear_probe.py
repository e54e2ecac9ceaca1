"""Linear probe: multinomial logistic regression on the features of a few labelled pictures.

The baseline of CLIP's appendix and of CoOp: L-BFGS, its C chosen on validation pictures by a sweep and bisection.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emblema.core.batch import ImageInput, Level
from emblema.core.card import Card
from emblema.engine.inputs import Inputs
from emblema.parts.logistic import COARSE, HALVINGS, choose_c, fit
from emblema.transfer.base import Transfer


@dataclass(kw_only=True)
class LinearProbe(Transfer):
    card = Card(
        name="linear_probe",
        title="Learning Transferable Visual Models From Natural Language Supervision",
        paper="2103.00020",
        year=2021,
        section="6.3.3 other",
        equation="min_W  c sum_i CE(W z_i, y_i) + 1/2 ||W||^2",
        reads=Level.POOLED,
        closed=True,
        claim="with 16 shots a class, the linear probe is more accurate than zero-shot",
        oracle="sklearn.linear_model.LogisticRegression",
        deviations=("on features after the projection, so that a picture costs one stored vector for all systems",),
    )
    c: float = 1.0  # without validation pictures

    def build(self, vlm, class_names):
        return Logistic(vlm.dim, len(class_names))

    def learn(self, module, train: Inputs, on_step=None):
        module.x, module.y = train.arrays["pooled"].flatten(0, 1), train.labels.repeat(train.views)
        module.solve(self.c)

    def select(self, module, val: Inputs):
        chosen = choose_c(module.x, module.y, val.arrays["pooled"][0], val.labels, module.classes, COARSE, HALVINGS)
        module.solve(chosen.c, chosen.start)


class Logistic(nn.Module):
    weight: Tensor  # [D + 1, C], the last row is the intercept
    x: Tensor
    y: Tensor

    def __init__(self, dim: int, classes: int):
        super().__init__()
        self.classes = classes
        self.register_buffer("weight", torch.zeros(dim + 1, classes))

    def solve(self, c: float, start: Tensor | None = None) -> None:
        self.weight = fit(self.x, self.y, self.classes, c, start).weight

    def forward(self, x: ImageInput) -> Tensor:
        return x.pooled @ self.weight[:-1] + self.weight[-1]
