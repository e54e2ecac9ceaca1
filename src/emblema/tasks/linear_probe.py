"""Linear probe: multinomial logistic regression on frozen features, its C chosen on validation.

CLIP's protocol: features before the projection, L-BFGS, C from a coarse sweep that is refined around its peak.
"""

from __future__ import annotations

from dataclasses import dataclass

from emblema.core.card import TaskCard
from emblema.parts.logistic import COARSE, HALVINGS
from emblema.tasks.base import Outcome, Task, labels_of
from emblema.tasks.classification import scored
from emblema.tasks.probe import probed


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
    shots: int = 0  # training images a class; 0: all
    seed: int = 1  # of the shots
    c_path: tuple[float, ...] = COARSE  # the coarse sweep
    halvings: int = HALVINGS  # of the interval around its peak
    frames: int = 8  # of each clip, where the data are clips
    resamples: int = 1000  # of the bootstrap

    def run(self, model, data, *, train=None, val=None) -> Outcome:
        found = probed(
            model, data, train, val, self.level, self.shots, self.seed, self.c_path, self.halvings, self.frames
        )
        outcome = scored(found.logits, labels_of(data), data, self.resamples)
        outcome.tables["c_path"] = [{"C": c, "validation_top1": a} for c, a in found.path]
        if found.draw:
            outcome.tables["draw"] = [{"shots": self.shots, "seed": self.seed, "key": key} for key in found.draw]
        outcome.sizes |= {"train": found.count}
        outcome.notes += found.notes
        return outcome

    def variant(self) -> str:
        return "-".join((self.level, *([f"{self.shots}-shot"] if self.shots else [])))

    def options(self) -> dict:
        return {
            "level": self.level,
            "shots": self.shots,
            "c_path": list(self.c_path),
            "halvings": self.halvings,
            "frames": self.frames,
        }
