"""Robustness: accuracy over domains, and how much of a shift a model withstands beyond what its accuracy explains.

Effective robustness (Taori et al., 2007.00644): accuracy under shift minus the accuracy that a baseline trend
predicts from accuracy on the reference. The trend is a line through the baselines in logit space; one baseline fixes
its height only, and its slope is 1. Relative robustness is the plain gain over the baselines' mean under shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emblema.core.card import TaskCard
from emblema.core.errors import BadData
from emblema.engine.features import identity
from emblema.tasks import metrics
from emblema.tasks.base import Outcome, Predictor, Task, column, labels_of
from emblema.tasks.classification import HELD_OUT_COLOUR
from emblema.tasks.protocols import template_id
from emblema.tasks.statistics import Interval, Statistic, bootstrap, mean_of
from emblema.tasks.wording import scores_of, wording

HELD_OUT = (*HELD_OUT_COLOUR, "emojione-monotone", "human")  # of the bundled sets: in their test splits only
EDGE = 1e-3  # accuracies are kept this far from 0 and 1, where a logit is infinite


@dataclass(kw_only=True)
class Robustness(Task):
    card = TaskCard(
        name="robustness",
        title="Robustness over domains",
        section="3.4 classification",
        metric="top1_shift",
        needs=("labels", "domains"),
    )
    reference: str = ""  # the domains that count as unshifted, separated by commas; default: all but the held-out ones
    held_out: str = ",".join(HELD_OUT)  # domains that no training set shows
    baseline: str = ""  # result files (.jsonl) of this protocol, or names or folders of models, separated by commas
    templates: str = ""  # a template set, or a text file with a template a line; default: the data set's own
    frames: int = 8  # of each clip, where the data are clips
    resamples: int = 1000  # of the bootstrap

    def run(self, model, data, *, val=None) -> Outcome:
        parts, notes = [data], []
        if val is not None and not self._sides(column(data, "domain"))[0]:
            parts.append(val)
            notes.append("the measured split shows shifted domains only: the reference is the validation split")
        _, templates = wording(self.templates, data)
        labels = torch.cat([labels_of(part) for part in parts])
        domains = [d or "" for part in parts for d in column(part, "domain")]
        shifted = self._shifted(domains, data)
        right_of = lambda who: first(torch.cat([scores_of(who, p, templates, self.frames) for p in parts]), labels)
        right, n = right_of(model), len(labels)
        at = {name: torch.tensor([d == name for d in domains]) for name in sorted(set(domains))}

        def part(inside: Tensor) -> Interval:
            return bootstrap(mean_of(right[inside]), int(inside.sum()), resamples=self.resamples)

        def whole(statistic: Statistic) -> Interval:
            return bootstrap(statistic, n, resamples=self.resamples, strata=shifted.long())

        out = {
            "top1_reference": part(~shifted),
            "top1_shift": part(shifted),
            "gap": whole(_both(right, shifted, lambda reference, shift: reference - shift)),
            "mean_over_domains": whole(_over(right, list(at.values()), "mean")),
            "worst_domain": whole(_over(right, list(at.values()), "min")),
        }
        out |= {f"top1/{name}": part(inside) for name, inside in at.items()}
        side = {name: "shift" if shifted[inside][0] else "reference" for name, inside in at.items()}
        table = [
            {"domain": d, "side": side[d], "images": int(i.sum()), **out[f"top1/{d}"].to_json()} for d, i in at.items()
        ]
        tables = {"per_domain": table}
        if self.baseline:
            points = self._baselines(data, right_of, shifted)
            slope, height = trend([(reference, shift) for _, reference, shift in points])
            expected = lambda reference: torch.sigmoid(slope * _logit(reference) + height)
            mean = sum(shift for *_, shift in points) / len(points)
            out["effective_robustness"] = whole(_both(right, shifted, lambda r, s: s - expected(r)))
            out["relative_robustness"] = whole(_both(right, shifted, lambda r, s: s - mean))
            tables["baselines"] = [{"baseline": b, "top1_reference": r, "top1_shift": s} for b, r, s in points]
            notes.append(f"trend of {len(points)} baselines: logit(shift) = {slope:.3g} logit(ref.) + {height:.3g}")
        sizes = {"images": n, "reference": int((~shifted).sum()), "shift": int(shifted.sum()), "domains": len(at)}
        return Outcome(metrics=out, tables=tables, sizes=sizes, notes=notes)

    def splits(self) -> tuple[str, ...]:
        return ("val",)

    def _sides(self, domains: Sequence[str | None]) -> tuple[set[str], set[str]]:
        """(reference, shifted) among the domains of some records."""
        known, names = {d or "" for d in domains}, lambda text: {d.strip() for d in text.split(",") if d.strip()}
        shifted = known - names(self.reference) if self.reference else known & names(self.held_out)
        return known - shifted, shifted

    def _shifted(self, domains: Sequence[str], data) -> Tensor:
        reference, shifted = self._sides(domains)
        if not shifted or not reference:
            raise BadData(
                f"these records of {data.card.name} show {', '.join(sorted(reference | shifted)) or 'no domain'}, all "
                "on one side of the shift: measure more splits (--split val+test), or name the unshifted domains "
                "(--reference)"
            )
        return torch.tensor([d in shifted for d in domains])

    def _baselines(self, data, right_of, shifted) -> list[tuple[str, float, float]]:
        """(name, accuracy on the reference, accuracy under shift)"""
        found = []
        for spec in (b.strip() for b in self.baseline.split(",")):
            if spec.endswith(".jsonl"):
                found += self._lines(spec, data)
            elif spec:
                from emblema.model import load

                right = right_of(load(spec))
                found.append((Path(spec).name, float(right[~shifted].mean()), float(right[shifted].mean())))
        if not found:
            raise BadData(
                f"no baseline in {self.baseline!r}: give result files of `evaluate robustness`, or model names"
            )
        return found

    def _lines(self, path: str, data) -> list[tuple[str, float, float]]:
        from emblema.report.result import read

        mine = [r for r in read(path) if r["task"] == self.card.name and r["data"] == data.card.name]
        settings = lambda options: {k: v for k, v in options.items() if k != "baseline"}
        ours, records = settings(self.options()), identity(data)
        same = [r for r in mine if settings(r["protocol"]["options"]) == ours and r["data_hash"] == records]
        if not same:
            raise BadData(
                f"{path} has {len(mine)} robustness lines of {data.card.name}, none of these records with the same "
                "reference domains: evaluate the baseline with the same split and settings, and --out"
            )
        value = lambda r, k: r["metrics"][k]["value"]
        return [(f"{r['system']}/{r['model']}", value(r, "top1_reference"), value(r, "top1_shift")) for r in same]

    def options(self) -> dict:
        baselines = [Path(b.strip()).name for b in self.baseline.split(",") if b.strip()]
        return {"reference": self.reference, "held_out": self.held_out, "frames": self.frames, "baseline": baselines}

    def template_set(self, model, data) -> str:
        return "" if isinstance(model, Predictor) else template_id(*wording(self.templates, data))


def first(logits: Tensor, labels: Tensor) -> Tensor:
    """1.0 where the right class is the best: [N, C], [N] -> [N]"""
    return metrics.top(metrics.ranks(logits, labels), 1)


def _both(right: Tensor, shifted: Tensor, measure) -> Statistic:
    """A measure of (accuracy on the reference, accuracy under shift)."""
    right, under = right.double(), shifted.double()
    of = lambda w, inside: (w @ (right * inside)) / (w @ inside).clamp(min=1)
    return lambda weights: measure(of(weights, 1 - under), of(weights, under))


def _over(right: Tensor, domains: list[Tensor], how: str) -> Statistic:
    """Mean or least of the accuracies of the domains."""
    right = right.double()

    def statistic(weights: Tensor) -> Tensor:
        accuracy = torch.stack([(weights @ (right * d)) / (weights @ d.double()) for d in domains])  # [domains, R]
        return accuracy.nanmean(0) if how == "mean" else accuracy.nan_to_num(nan=torch.inf).amin(0)

    return statistic


def _logit(accuracy: Any) -> Any:
    p = torch.as_tensor(accuracy, dtype=torch.float64).clamp(EDGE, 1 - EDGE)
    return torch.log(p / (1 - p))


def trend(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(slope, height) of the least-squares line through (reference, shift) in logit space; one point: slope 1."""
    x, y = _logit([p[0] for p in points]), _logit([p[1] for p in points])
    spread = float((x - x.mean()).pow(2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread > 1e-12 else 1.0
    return slope, float(y.mean()) - slope * float(x.mean())
