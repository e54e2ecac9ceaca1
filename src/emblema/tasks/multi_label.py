"""Multi-label classification: pictures that show several classes, each class a ranking of all pictures.

A record's `labels` are the classes that it shows. The ranking of a class is by its score; `softmax` turns the scores
of a picture into shares first, so that a picture counts for one class only as far as it does not for others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emblema.core.card import TaskCard
from emblema.core.errors import BadData
from emblema.data.datasets import columns
from emblema.tasks import metrics
from emblema.tasks.base import Outcome, Predictor, Task
from emblema.tasks.protocols import template_id
from emblema.tasks.statistics import Statistic, bootstrap
from emblema.tasks.wording import scores_of, wording


@dataclass(kw_only=True)
class MultiLabel(Task):
    card = TaskCard(
        name="multi-label",
        title="Multi-label classification",
        section="3.4 classification",
        metric="mAP",
        needs=("labels",),
    )
    templates: str = ""  # a template set, or a text file with a template a line; default: the data set's own
    softmax: bool = False  # scores of a picture as shares of its classes
    resamples: int = 1000  # of the bootstrap

    def run(self, model, data) -> Outcome:
        positive = shown(data)
        _, templates = wording(self.templates, data)
        scores = scores_of(model, data, templates)
        novel = [c in getattr(data, "novel", ()) for c in data.class_names]
        return score(
            scores.softmax(-1) if self.softmax else scores, positive, list(data.class_names), novel, self.resamples
        )

    def options(self) -> dict:
        return {"softmax": self.softmax}

    def template_set(self, model, data) -> str:
        return "" if isinstance(model, Predictor) else template_id(*wording(self.templates, data))


def shown(data) -> Tensor:
    """Which classes each picture shows: bool [N, C]"""
    several, single = columns(data, "labels", "label")
    if not any(several) and all(v is None for v in single):
        raise BadData(
            f"the records of {data.card.name} have no labels: give a column `labels`, names separated by |, or a "
            "COCO instances file"
        )
    positive = torch.zeros(len(data), len(data.class_names), dtype=torch.bool)
    for row, (labels, label) in enumerate(zip(several, single)):
        for c in labels or ([] if label is None else [label]):
            positive[row, int(c)] = True
    return positive


def score(scores: Tensor, positive: Tensor, names: list[str], novel: list[bool] | None = None, resamples: int = 1000):
    """Mean average precisions and ROC AUC from scores [N, C] and bool positives [N, C]; absent classes do not count."""
    if scores.shape != positive.shape:
        raise BadData(f"{tuple(scores.shape)} scores for {tuple(positive.shape)} records and classes")
    metrics.refuse_nan(scores)
    count = positive.sum(0)
    present = count.nonzero()[:, 0]
    if not len(present):
        raise BadData("no picture shows any of the classes: average precision means nothing")

    def mean_over(classes: Tensor, measure) -> Statistic:
        one = lambda c, weights: measure(scores[:, c], positive[:, c], weights).reshape(-1)
        return lambda weights: torch.stack([one(int(c), weights) for c in classes]).nanmean(0)

    precision = metrics.average_precision
    eleven = lambda s, p, w: precision(s, p, w, points=11)
    mixed = present[count[present] < len(scores)]  # ROC needs both kinds
    measured = {"mAP": (present, precision), "mAP_11point": (present, eleven), "roc_auc": (mixed, metrics.roc_auc)}
    if novel and any(novel) and not all(novel):
        new = torch.tensor(novel)[present]
        measured |= {"mAP/base": (present[~new], precision), "mAP/novel": (present[new], precision)}
    out = {
        name: bootstrap(mean_over(classes, measure), len(scores), resamples=resamples)
        for name, (classes, measure) in measured.items()
        if len(classes)
    }
    table = [
        {
            "class": names[c],
            "images": int(count[c]),
            "AP": float(precision(scores[:, c], positive[:, c])),
            "AP_11point": float(precision(scores[:, c], positive[:, c], points=11)),
            "roc_auc": float(metrics.roc_auc(scores[:, c], positive[:, c])),
        }
        for c in present.tolist()
    ]
    absent = [names[c] for c in (count == 0).nonzero()[:, 0].tolist()]
    notes = [f"{len(absent)} classes that no picture shows do not count: {', '.join(absent[:5])}"] if absent else []
    sizes = {"images": len(scores), "classes": len(names), "positives": int(count.sum())}
    return Outcome(metrics=out, tables={"per_class": table}, sizes=sizes, notes=notes)
