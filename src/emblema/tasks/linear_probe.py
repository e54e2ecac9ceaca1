"""Linear probe: multinomial logistic regression on frozen features, its C chosen on validation.

The objective is scikit-learn's, C * sum CE + 1/2 ||W||^2 with a free intercept, so numbers can be compared; the
solver is L-BFGS over one matrix product a step. The values of C are visited in ascending order and each solve
starts where the last one ended. What chooses C is never handed the test split.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from emblema.core.batch import Level
from emblema.core.card import TaskCard
from emblema.core.errors import BadData
from emblema.tasks import metrics
from emblema.tasks.base import Outcome, Task, labels_of
from emblema.tasks.statistics import bootstrap, ece_of, mean_of, mean_per_class_of

C_PATH = tuple(10.0 ** (e / 2) for e in range(-4, 11))  # 0.01 ... 100,000, two a decade
HELD_OUT = 0.2  # of the training images, where a set has no validation split


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
    resamples: int = 1000  # of the bootstrap

    def run(self, model, data, *, train=None, val=None) -> Outcome:
        if self.level not in ("hidden", "joint"):
            raise BadData(f'no feature level {self.level!r}: "hidden" is before the projection, "joint" after')
        if train is None:
            raise BadData(f"{data.card.name}: a linear probe needs a training split")
        notes = []
        x, y = self._read(model, train)
        if val is not None:
            chosen = choose_c(x, y, *self._read(model, val), len(data.class_names), self.c_path)
            x, y = (torch.cat(pair) for pair in zip((x, y), self._read(model, val)))
        else:
            inner, outer = stratified(y, HELD_OUT)
            chosen = choose_c(x[inner], y[inner], x[outer], y[outer], len(data.class_names), self.c_path)
            notes.append(f"no validation split: C was chosen on {len(outer)} held-out training images")
        probe = fit(x, y, len(data.class_names), chosen.c, chosen.start)
        if chosen.c in (min(self.c_path), max(self.c_path)):
            notes.append(f"C = {chosen.c:g} is the end of the path: widen --c-path")
        logits = probe(self._read(model, data)[0])
        outcome = score(logits, labels_of(data), list(data.class_names), self.resamples)
        outcome.tables["c_path"] = [{"C": c, "validation_top1": a} for c, a in chosen.path]
        outcome.sizes |= {"train": len(x)}
        outcome.notes += [f"features: {self.level} ({x.shape[1]} dimensions), C = {chosen.c:g}", *notes]
        return outcome

    def _read(self, model, data) -> tuple[Tensor, Tensor]:
        level = "hidden" if self.level == "hidden" else Level.POOLED
        return model.features(data, level).float(), labels_of(data)

    def options(self) -> dict:
        return {"level": self.level, "c_path": list(self.c_path)}


def score(logits: Tensor, labels: Tensor, names: list[str], resamples: int) -> Outcome:
    rank = metrics.ranks(logits, labels)
    first = metrics.top(rank, 1)
    confidence = logits.softmax(-1).max(-1).values
    statistics = {
        "top1": mean_of(first),
        "top5": mean_of(metrics.top(rank, 5)),
        "ece": ece_of(confidence, first, metrics.calibration_bins(confidence)),
    }
    accuracy, count = metrics.per_class(first, labels, len(names))
    table = [
        {"class": names[c], "images": int(count[c]), "top1": float(accuracy[c])} for c in count.nonzero()[:, 0].tolist()
    ]
    intervals = {name: bootstrap(s, len(labels), resamples=resamples) for name, s in statistics.items()}
    balanced = mean_per_class_of(first, labels, len(names))
    intervals["mean_per_class"] = bootstrap(balanced, len(labels), resamples=resamples, strata=labels)
    return Outcome(metrics=intervals, tables={"per_class": table}, sizes={"images": len(labels), "classes": len(names)})


class Probe(NamedTuple):
    """A fitted classifier. `weight` [D + 1, C], the last row is the intercept."""

    weight: Tensor
    steps: int

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight[:-1] + self.weight[-1]


class Choice(NamedTuple):
    c: float
    path: list[tuple[float, float]]  # (C, validation accuracy)
    start: Tensor  # weights at the chosen C


def choose_c(
    x: Tensor, y: Tensor, x_val: Tensor, y_val: Tensor, classes: int, path: Sequence[float] = C_PATH
) -> Choice:
    """The C with the best validation accuracy; of equals the smallest."""
    start, tried, best = None, [], (-1.0, 0.0, None)
    for c in sorted(path):
        probe = fit(x, y, classes, c, start)
        start = probe.weight
        accuracy = float((probe(x_val).argmax(1) == y_val).double().mean())
        tried.append((c, accuracy))
        if accuracy > best[0]:
            best = (accuracy, c, start)
    assert best[2] is not None, "the path of C is empty"
    return Choice(best[1], tried, best[2])


def stratified(y: Tensor, share: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Indices (rest, held out) with `share` of every class held out; a class of one image stays in the rest."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    rest, held = [], []
    for c in y.unique():
        rows = order[y[order] == c]
        n = min(len(rows) - 1, max(1, round(share * len(rows)))) if len(rows) > 1 else 0
        held.append(rows[:n])
        rest.append(rows[n:])
    return torch.cat(rest).sort().values, torch.cat(held).sort().values


def fit(
    x: Tensor, y: Tensor, classes: int, c: float, start: Tensor | None = None, tol: float = 1e-5, max_steps: int = 1000
) -> Probe:
    """Multinomial logistic regression: min over W, b of C * sum CE(x W + b, y) + 1/2 ||W||^2.

    `tol` bounds the largest entry of the gradient of the objective divided by C * N, as in scikit-learn.
    """
    metrics.refuse_nan(x, "features")
    x, n = x.float(), len(x)
    rows = torch.arange(n)
    penalty = 1 / (c * n)  # the objective is divided by C * N: its scale does not depend on C

    def objective(w: Tensor) -> tuple[float, Tensor]:
        logits = torch.addmm(w[-1], x, w[:-1])  # [N, C]
        norm = logits.logsumexp(1, keepdim=True)
        value = float((norm[:, 0].double() - logits[rows, y].double()).mean())
        p = logits.sub_(norm).exp_()
        p[rows, y] -= 1
        gradient = torch.empty_like(w)
        torch.mm(x.T, p, out=gradient[:-1])
        gradient[-1] = p.sum(0)
        gradient /= n
        gradient[:-1] += penalty * w[:-1]
        return value + 0.5 * penalty * float(w[:-1].double().pow(2).sum()), gradient

    w = torch.zeros(x.shape[1] + 1, classes) if start is None else start.clone()
    return Probe(*lbfgs(objective, w, tol, max_steps))


def lbfgs(
    objective: Callable[[Tensor], tuple[float, Tensor]], w: Tensor, tol: float, max_steps: int, memory: int = 10
) -> tuple[Tensor, int]:
    """Limited-memory BFGS (Nocedal & Wright, algorithms 7.4 and 7.5) with a weak Wolfe line search."""
    value, gradient = objective(w)
    pairs: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=memory)
    for step in range(max_steps):
        if float(gradient.abs().max()) <= tol:
            return w, step
        direction = -_inverse_hessian(gradient, pairs)
        slope = float((direction * gradient).sum())
        if slope >= 0:  # rounding has spoilt the memory
            pairs.clear()
            direction, slope = -gradient, -float(gradient.pow(2).sum())
        first = 1.0 if pairs else min(1.0, 1.0 / float(gradient.norm()))
        moved = _wolfe(objective, w, value, direction, slope, first)
        if moved is None:  # fp32 cannot tell a better point
            if not pairs:
                return w, step
            pairs.clear()
            continue
        w_new, value, new = moved
        s, d = w_new - w, new - gradient
        curvature = float((s * d).sum())
        if curvature > 1e-10 * float(d.pow(2).sum()):
            pairs.append((s, d, 1 / curvature))
        w, gradient = w_new, new
    return w, max_steps


def _inverse_hessian(gradient: Tensor, pairs: Sequence[tuple[Tensor, Tensor, float]]) -> Tensor:
    q, alphas = gradient.clone(), []
    for s, d, rho in reversed(pairs):
        alphas.append(rho * float((s * q).sum()))
        q.sub_(d, alpha=alphas[-1])
    if pairs:
        _, d, rho = pairs[-1]
        q /= rho * float(d.pow(2).sum())
    for (s, d, rho), alpha in zip(pairs, reversed(alphas)):
        q.add_(s, alpha=alpha - rho * float((d * q).sum()))
    return q


def _wolfe(objective, w: Tensor, value: float, direction: Tensor, slope: float, step: float):
    """A step of sufficient decrease and curvature by bisection; None when there is none in 30 tries."""
    low, high = 0.0, float("inf")
    for _ in range(30):
        there = w + step * direction
        new, gradient = objective(there)
        if new > value + 1e-4 * step * slope + 1e-12 * abs(value):
            high = step
        elif float((gradient * direction).sum()) < 0.9 * slope:
            low = step
        else:
            return there, new, gradient
        step = (low + high) / 2 if high < float("inf") else 2 * low
    return None
