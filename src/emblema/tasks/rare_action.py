"""Rare actions: is a verb done to a noun that it is seldom done to, and not only one of them in the picture?

RareAct's protocol (Miech et al., 2020, arXiv 2008.01018). A clip was asked about one (verb, noun): 1 yes, 2 only the
verb, 3 only the noun, 4 both but apart, 0 neither. Average precision of each action that some clip shows, over the
clips that were asked about it and those that show another action. Many clips are of one video, so mWAP gives the clips
of a video together the weight of one, and mSAP takes one clip of each video at random, 100 times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emblema.core.card import TaskCard
from emblema.core.errors import BadData
from emblema.data.datasets import columns
from emblema.tasks import metrics
from emblema.tasks.base import Outcome, Predictor, Task
from emblema.tasks.protocols import template_id
from emblema.tasks.statistics import bootstrap
from emblema.tasks.wording import scores_of, wording

FEWER = 100  # resamples of mSAP, each of which is itself a mean over draws


@dataclass(kw_only=True)
class RareAction(Task):
    card = TaskCard(
        name="rare-action",
        title="Rare actions",
        section="3.4 action recognition",
        metric="mWAP",
        needs=("labels", "clips", "annotations"),
    )
    frames: int = 8  # of each clip: the middles of so many equal parts
    templates: str = ""  # a template set, or a text file with a template a line; default: the data set's own
    draws: int = 100  # of mSAP
    seed: int = 0  # of the draws
    resamples: int = 1000

    def run(self, model, data) -> Outcome:
        asked, annotation, video = columns(data, "label", "annotation", "video")
        if not len(data) or any(a is None for a in annotation) or any(v is None for v in video):
            raise BadData(
                f"{data.card.name} must say of each clip what it shows (column `annotation`, 0 to 4) and of which "
                "video it is (column `video`): bring RareAct, as --data rareact:PATH, or a table with these columns"
            )
        _, templates = wording(self.templates, data)
        scores = metrics.refuse_nan(scores_of(model, data, templates, self.frames))
        judged = [one for c in range(len(data.class_names)) if (one := judge(c, data.class_names, asked, annotation))]
        if not judged:
            raise BadData(f"no clip of {data.card.name} shows the action that it was asked about")
        kind = [torch.tensor([video.index(v) for v in video])[one.rows] for one in judged]
        once = [shared(one, of) for one, of in zip(judged, kind)]
        dice = torch.Generator().manual_seed(self.seed)
        drawn = [[one_of_each(one, of, dice) for one, of in zip(judged, kind)] for _ in range(self.draws)]

        def mean_precision(own: Sequence[Tensor], weights: Tensor) -> Tensor:
            """Mean over actions; `own` [M] weights of the clips of each, `weights` [R, N] of the resamples."""
            each = [
                metrics.average_precision(scores[one.rows, one.action], one.shown, own_ * weights[:, one.rows])
                for one, own_ in zip(judged, own)
            ]
            return torch.stack([a.reshape(-1) for a in each]).nanmean(0)

        sampled = lambda weights: torch.stack([mean_precision(own, weights) for own in drawn]).mean(0)
        found = {
            "mWAP": bootstrap(lambda w: mean_precision(once, w), len(data), resamples=self.resamples),
            "mSAP": bootstrap(sampled, len(data), resamples=min(self.resamples, FEWER)),
        }
        table = [
            {
                "class": data.class_names[one.action],
                "clips": int(one.shown.sum()),
                "wAP": float(metrics.average_precision(scores[one.rows, one.action], one.shown, own[None])),
            }
            for one, own in zip(judged, once)
        ]
        notes = [f"{len(data.class_names) - len(judged)} actions that no clip shows do not count"]
        return Outcome(
            metrics=found,
            tables={"per_class": table},
            sizes={"clips": len(data), "actions": len(judged), "templates": len(templates)},
            notes=[f"{self.frames} frames a clip, pooled", *notes],
        )

    def options(self) -> dict:
        return {"frames": self.frames, "draws": self.draws}

    def template_set(self, model, data) -> str:
        return "" if isinstance(model, Predictor) else template_id(*wording(self.templates, data))


@dataclass(frozen=True)
class Judged:
    """The clips [M] that an action is judged on, its positives first, then hard and plain negatives."""

    action: int
    rows: Tensor  # [M] their numbers
    shown: Tensor  # [M] bool
    group: Tensor  # [M] 0 positive, 1 hard negative, 2 negative


def judge(action: int, names: Sequence[str], asked: Sequence[int], annotation: Sequence[int]) -> Judged | None:
    """None for an action that no clip shows. An action is "verb noun".

    A clip that shows another action is a hard negative where it shares the verb or the noun, else a plain one.
    """
    verb, noun = names[action].split(" ", 1)
    groups: tuple[list[int], list[int], list[int]] = ([], [], [])
    for row, (other, answer) in enumerate(zip(asked, annotation)):
        if other == action:
            groups[{1: 0, 0: 2}.get(answer, 1)].append(row)
        elif answer == 1:
            v, n = names[other].split(" ", 1)
            groups[1 if (v == verb) != (n == noun) else 2].append(row)
    if not groups[0]:
        return None
    rows, group = torch.tensor([(row, g) for g, rows in enumerate(groups) for row in rows]).T
    return Judged(action, rows, group == 0, group)


def shared(one: Judged, video: Tensor) -> Tensor:
    """Weights [M] that give all clips of a video in a group together 1."""
    place = list(zip(one.group.tolist(), video.tolist()))
    count = Counter(place)
    return torch.tensor([1 / count[p] for p in place], dtype=torch.float64)


def one_of_each(one: Judged, video: Tensor, dice: torch.Generator) -> Tensor:
    """Weights [M] of 1 for one clip of each video in a group, drawn at random, and 0 for its others."""
    taken = torch.zeros(len(video), dtype=torch.float64)
    order = torch.randperm(len(video), generator=dice)
    seen: set[tuple[int, int]] = set()
    for row in order.tolist():
        place = (int(one.group[row]), int(video[row]))
        if place not in seen:
            seen.add(place)
            taken[row] = 1
    return taken
