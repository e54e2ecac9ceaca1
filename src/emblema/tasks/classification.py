"""What every classification is scored by, from its logits: accuracies, calibration, breakdowns and tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from emblema.core.errors import BadData
from emblema.data.datasets import columns
from emblema.tasks import metrics
from emblema.tasks.base import Outcome, column
from emblema.tasks.statistics import Interval, Statistic, bootstrap, ece_of, mean_of, mean_per_class_of

HELD_OUT_COLOUR = ("openmoji", "emojione", "emojione-v1")  # colour art families that no training set shows
SHOWN = 24  # predictions kept for a page


def scored(logits: Tensor, labels: Tensor, data: Any, resamples: int = 1000) -> Outcome:
    """`score` with the domains, novel classes and keys of a data set."""
    if logits.shape[1] != len(data.class_names):
        raise BadData(
            f"{data.card.name} has {len(data.class_names)} classes, but its records got {logits.shape[1]} scores each: "
            "a predictor scores data.class_names, in their order"
        )
    domain, keys = columns(data, "domain", "key")
    outcome = score(logits, labels, list(data.class_names), domain, base_of(data, labels), resamples)
    for row in outcome.predictions:
        row["key"] = keys[row["index"]]
    return outcome


def base_of(data: Any, labels: Tensor) -> list[int] | None:
    """The classes whose records are not marked novel; None where the set does not say."""
    if "novel" not in getattr(data, "columns", ()):
        return None
    novel = {int(y) for y, new in zip(labels, column(data, "novel")) if new}
    return [c for c in range(len(data.class_names)) if c not in novel] if novel else None


def score(
    logits: Tensor,
    labels: Tensor,
    names: list[str],
    domains: list[str | None] | None = None,
    base: list[int] | None = None,
    resamples: int = 1000,
) -> Outcome:
    """Metrics, breakdown and tables from logits [N, C].

    `top1/base`, `top1/novel` choose among all classes (generalised); `top1/base_among_base`, `top1/novel_among_novel`
    among the classes of their own half, as base-to-novel protocols do (CoCoOp, 2203.05557).
    """
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
    if classes == 2 and len(labels.unique()) == 2:  # Hateful Memes, Rendered SST2
        margin = logits[:, 1] - logits[:, 0]
        out["roc_auc"] = interval(lambda weights: metrics.roc_auc(margin, labels, weights).reshape(-1))
    tables = {"per_class": _per_class(first, labels, said, names)}

    def part(name: str, inside: Tensor, right: Tensor = first) -> None:
        if inside.any():
            out[name] = interval(mean_of(right[inside]), int(inside.sum()))

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
        closed = metrics.top(
            metrics.ranks(logits.masked_fill(is_base[labels][:, None] ^ is_base, -torch.inf), labels), 1
        )
        for half, inside in (("base", is_base[labels]), ("novel", ~is_base[labels])):
            part(f"top1/{half}", inside)
            part(f"top1/{half}_among_{half}", inside, closed)
        if is_base[labels].any() and not is_base[labels].all():
            out["top1/harmonic"] = interval(harmonic_of(first, is_base[labels]))
            out["top1/harmonic_among_own"] = interval(harmonic_of(closed, is_base[labels]))
    return Outcome(
        metrics=out,
        tables=tables,
        predictions=_predictions(logits, labels, names),
        sizes={"images": n, "classes": classes},
    )


def harmonic_of(right: Tensor, base: Tensor) -> Statistic:
    """The harmonic mean of the accuracies of base [N] and of other images."""
    right, base = right.double(), base.double()

    def statistic(weights: Tensor) -> Tensor:
        of = lambda inside: (weights @ (right * inside)) / (weights @ inside).clamp(min=1)
        return metrics.harmonic(of(base), of(1 - base))

    return statistic


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
