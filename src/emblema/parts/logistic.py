"""Multinomial logistic regression by L-BFGS, and the choice of its C on validation data.

The objective is scikit-learn's, C * sum CE + 1/2 ||W||^2 with a free intercept, so numbers can be compared; the solver
works on one matrix product a step, started from the solution of the nearest C that was solved before.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from emblema.core.errors import BadData

COARSE = tuple(10.0**e for e in range(-6, 7, 2))  # CLIP's sweep (Radford et al. 2021, A.3) ...
HALVINGS = 4  # ... and how often the interval around the peak is halved: to 8 steps a decade


class Probe(NamedTuple):
    """A fitted classifier. `weight` [D + 1, C], the last row is the intercept."""

    weight: Tensor
    steps: int

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight[:-1] + self.weight[-1]


class Choice(NamedTuple):
    c: float
    path: list[tuple[float, float]]  # (C, validation accuracy), ascending
    start: Tensor  # weights at the chosen C


def choose_c(
    x: Tensor,
    y: Tensor,
    x_val: Tensor,
    y_val: Tensor,
    classes: int,
    path: Sequence[float] = COARSE,
    halvings: int = 0,
) -> Choice:
    """The C with the best validation accuracy; of equals the smallest.

    After the path, both neighbours of the best C are tried at half the distance, `halvings` times.
    """
    tried: dict[float, tuple[float, Tensor]] = {}

    def attempt(c: float) -> None:
        near = min(tried, key=lambda other: abs(math.log(other / c)), default=None)
        probe = fit(x, y, classes, c, None if near is None else tried[near][1])
        tried[c] = float((probe(x_val).argmax(1) == y_val).double().mean()), probe.weight

    def best() -> float:
        return max(sorted(tried), key=lambda c: tried[c][0])

    ordered = sorted(path)
    if not ordered or ordered[0] <= 0:
        raise BadData(f"the path of C is {list(path)}: give at least one number above 0")
    for c in ordered:
        attempt(c)
    step = math.log10(ordered[-1] / ordered[0]) / max(1, len(ordered) - 1)
    for _ in range(halvings if step else 0):
        step, peak = step / 2, best()
        for c in (peak / 10**step, peak * 10**step):
            attempt(c)
    c = best()
    return Choice(c, [(c, tried[c][0]) for c in sorted(tried)], tried[c][1])


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
    if not x.isfinite().all():
        rows = (~x.isfinite()).any(1).nonzero()[:, 0].tolist()
        raise BadData(f"{len(rows)} of {len(x)} rows of the features hold NaN or infinity, e.g. row {rows[0]}")
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
