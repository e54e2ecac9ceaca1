"""Action recognition: clips of frames, sub-sampled and pooled; by class names alone, or by a probe on the features.

Clips are video files, folders of frames, or lists of frames in a table. The domains of the evaluated records are
reported apart: `--split val+test` on `emblem-actions` shows the shift from creatures to people.
"""

from __future__ import annotations

from dataclasses import dataclass

from emblema.core.card import TaskCard
from emblema.core.errors import BadData
from emblema.data.datasets import Records
from emblema.data.video import by_folder
from emblema.parts.logistic import COARSE, HALVINGS
from emblema.tasks import metrics
from emblema.tasks.base import Outcome, Predictor, Task, labels_of
from emblema.tasks.classification import scored
from emblema.tasks.clips import Frames
from emblema.tasks.probe import probed
from emblema.tasks.protocols import template_id
from emblema.tasks.statistics import bootstrap, mean_of
from emblema.tasks.wording import scores_of, wording


@dataclass(kw_only=True)
class Action(Task):
    card = TaskCard(
        name="action",
        title="Action recognition",
        section="3.4 action recognition",
        metric="top1_top5_mean",
        needs=("labels", "clips"),
    )
    probe: bool = False  # a linear probe on the training clips instead of class names
    level: str = "hidden"  # of the probe: features before ("hidden") or after ("joint") the projection
    shots: int = 0  # training clips a class of the probe; 0: all
    seed: int = 1  # of the shots
    frames: int = 8  # of each clip: the middles of so many equal parts
    templates: str = ""  # a template set, or a text file with a template a line; default: the data set's own
    resamples: int = 1000

    def run(self, model, data, *, train=None, val=None) -> Outcome:
        grouped = lambda records: by_folder(records) if isinstance(records, Records) else records
        data, train, val = grouped(data), grouped(train), grouped(val)
        labels = labels_of(data)
        if self.probe and isinstance(model, Predictor):
            raise BadData("a fitted system is measured as it is: leave --probe off")
        if self.probe:
            found = probed(model, data, train, val, self.level, self.shots, self.seed, COARSE, HALVINGS, self.frames)
            logits, notes, sizes = found.logits, found.notes, {"train": found.count}
        else:
            _, templates = wording(self.templates, data)
            logits = scores_of(model, data, templates, self.frames)
            notes, sizes = [], {"templates": len(templates)}
        outcome = scored(logits, labels, data, self.resamples)
        rank = metrics.ranks(logits, labels)
        both = (metrics.top(rank, 1) + metrics.top(rank, 5)) / 2
        headline = {"top1_top5_mean": bootstrap(mean_of(both), len(both), resamples=self.resamples)}
        outcome.metrics = headline | outcome.metrics
        for row in outcome.predictions:
            row["image"] = Frames(data, 1)[row["index"]].image  # the middle one
        outcome.sizes = {"clips": outcome.sizes.pop("images"), **outcome.sizes, **sizes}
        outcome.notes += [f"{self.frames} frames a clip, pooled", *notes]
        return outcome

    def splits(self) -> tuple[str, ...]:
        return ("train", "val") if self.probe else ()

    def variant(self) -> str:
        return f"probe{f'-{self.shots}-shot' if self.shots else ''}" if self.probe else ""

    def options(self) -> dict:
        learnt = {"level": self.level, "shots": self.shots, "c_path": list(COARSE), "halvings": HALVINGS}
        return {"frames": self.frames} | ({"probe": learnt} if self.probe else {})

    def template_set(self, model, data) -> str:
        return "" if self.probe or isinstance(model, Predictor) else template_id(*wording(self.templates, data))
