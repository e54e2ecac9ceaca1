"""Zero-shot classification: the class whose text is nearest to the picture.

Each class name is written into every template; the unit text vectors are averaged and normalised again. Class
names and templates are those of the data set, so that a number means the same for every model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emblema.core.card import TaskCard
from emblema.tasks import metrics
from emblema.tasks.base import Outcome, Task, column, labels_of
from emblema.tasks.protocols import template_id
from emblema.tasks.statistics import Interval, bootstrap, ece_of, mean_of, mean_per_class_of
from emblema.tasks.wording import wording

HELD_OUT_COLOUR = ("openmoji", "emojione", "emojione-v1")  # colour art families that no training set shows
SHOWN = 24  # predictions kept for a page


@dataclass(kw_only=True)
class ZeroShot(Task):
    card = TaskCard(
        name="zero-shot",
        title="Zero-shot classification",
        section="3.4 classification",
        metric="top1",
        needs=("labels",),
    )
    templates: str = ""  # a template set, or a text file with a template a line; default: the data set's own
    resamples: int = 1000  # of the bootstrap

    @torch.inference_mode()
    def run(self, model, data) -> Outcome:
        labels, names = labels_of(data), list(data.class_names)
        _, templates = self._templates(data)
        z_text = model.class_vectors(names, templates)  # [C, D]
        logits = model.vlm.logits(model.features(data), z_text.to(model.device)).cpu()  # [N, C]
        outcome = score(logits, labels, names, column(data, "domain"), _base(data, labels), self.resamples)
        outcome.sizes |= {"templates": len(templates)}
        keys = column(data, "key")
        for row in outcome.predictions:
            row["key"] = keys[row["index"]]
        return outcome

    def template_set(self, model, data) -> str:
        return template_id(*self._templates(data))

    def _templates(self, data) -> tuple[str, list[str]]:
        return wording(self.templates, data)


def _base(data, labels: Tensor) -> list[int] | None:
    """The classes whose records are not marked novel; None where the set does not say."""
    if "novel" not in getattr(data, "columns", ()):
        return None
    novel = {int(y) for y, new in zip(labels, data.column("novel")) if new}
    return [c for c in range(len(data.class_names)) if c not in novel] if novel else None


def score(
    logits: Tensor,
    labels: Tensor,
    names: list[str],
    domains: list[str | None] | None = None,
    base: list[int] | None = None,
    resamples: int = 1000,
) -> Outcome:
    """Metrics, breakdown and tables from logits [N, C]."""
    n, classes = logits.shape
    rank = metrics.ranks(logits, labels)
    first = metrics.top(rank, 1)
    confidence, said = logits.softmax(-1).max(-1)

    def interval(statistic, n=n) -> Interval:
        return bootstrap(statistic, n, resamples=resamples)

    out = {
        "top1": interval(mean_of(first)),
        "top5": interval(mean_of(metrics.top(rank, 5))),
        "mean_per_class": bootstrap(mean_per_class_of(first, labels, classes), n, resamples=resamples, strata=labels),
        "ece": interval(ece_of(confidence, first, metrics.calibration_bins(confidence))),
    }
    tables = {"per_class": _per_class(first, labels, said, names)}

    def part(name: str, inside: Tensor) -> None:
        if inside.any():
            out[name] = interval(mean_of(first[inside]), int(inside.sum()))

    known = sorted({d for d in domains or [] if d})
    if len(known) > 1:
        assert domains is not None
        for domain in known:
            part(f"top1/{domain}", torch.tensor([d == domain for d in domains]))
        part("top1_heldout_colour", torch.tensor([d in HELD_OUT_COLOUR for d in domains]))
        tables["per_domain"] = [
            {"domain": d, "images": sum(x == d for x in domains), **out[f"top1/{d}"].to_json()} for d in known
        ]
    if base is not None:
        is_base = torch.zeros(classes, dtype=torch.bool)
        is_base[torch.tensor(base, dtype=torch.long)] = True
        part("top1/base", is_base[labels])
        new = ~is_base[labels]
        part("top1/novel", new)
        if new.any():  # base-to-novel, as CoCoOp counts it: novel pictures among novel names only
            among = metrics.top(metrics.ranks(logits[new].masked_fill(is_base, -torch.inf), labels[new]), 1)
            out["top1/novel_among_novel"] = interval(mean_of(among), int(new.sum()))
    return Outcome(
        metrics=out,
        tables=tables,
        predictions=_predictions(logits, labels, names),
        sizes={"images": n, "classes": classes},
    )


def _per_class(first: Tensor, labels: Tensor, said: Tensor, names: list[str]) -> list[dict]:
    accuracy, count = metrics.per_class(first, labels, len(names))
    table = []
    for c in count.nonzero()[:, 0].tolist():
        wrong = said[(labels == c) & (first == 0) & (said != c)]
        confused = names[int(wrong.mode().values)] if len(wrong) else ""
        table.append({"class": names[c], "images": int(count[c]), "top1": float(accuracy[c]), "taken_for": confused})
    return table


def _predictions(logits: Tensor, labels: Tensor, names: list[str]) -> list[dict]:
    """A few pictures spread evenly over the split, with their best three classes."""
    rows = torch.linspace(0, len(logits) - 1, min(SHOWN, len(logits))).round().long().tolist()
    probability, index = logits[rows].softmax(-1).topk(min(3, logits.shape[1]))
    return [
        {
            "index": row,
            "truth": names[int(labels[row])],
            "labels": [{"label": names[j], "probability": q} for j, q in zip(js, qs)],
        }
        for row, js, qs in zip(rows, index.tolist(), probability.tolist())
    ]
