"""Linear probe: multinomial logistic regression on frozen features, its C chosen on validation.

The objective is scikit-learn's, C * sum CE + 1/2 ||W||^2 with a free intercept, so numbers can be compared; the
solver is L-BFGS over one matrix product a step. The values of C are visited in ascending order and
each solve starts where the last one ended. The test split is read once, after the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emblema.core.card import TaskCard
from emblema.core.errors import BadData
from emblema.tasks import metrics
from emblema.tasks.base import Outcome, Task, labels_of
from emblema.tasks.statistics import bootstrap, ece_of, mean_of, mean_per_class_of

C_PATH = tuple(10.0 ** (e / 2) for e in range(-4, 11))  # 0.01 ... 100,000, twice a decade


@dataclass(kw_only=True)
class LinearProbe(Task):
    card = TaskCard(
        name="linear-probe",
        title="Linear probe",
        section="3.4 linear probing",
        metric="top1",
        needs=("labels", "train split"),
    )
    level: str = "hidden"  # features before ("hidden") or after ("joint") the projection
    c_path: tuple[float, ...] = C_PATH
    resamples: int = 1000

    def run(self, model, data) -> Outcome:
        train = data.split("train") if hasattr(data, "split") else None
        raise NotImplementedError

    def options(self) -> dict:
        return {"level": self.level, "c_path": list(self.c_path)}
