"""Multinomial logistic regression by L-BFGS, and the choice of its C on validation data.

The objective is scikit-learn's, C * sum CE + 1/2 ||W||^2 with a free intercept, so numbers can be compared. Small
problems are solved for many C side by side, one matrix product a step; large ones one after the other, each from the
solution of the nearest C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from emblema.core.errors import BadData
from emblema.parts.lbfgs import lbfgs

COARSE = tuple(10.0**e for e in range(-6, 7, 2))  # CLIP's sweep (Radford et al. 2021, A.3) ...
HALVINGS = 4  # ... and how often the interval around the peak is halved: to 8 steps a decade
TOGETHER = 2**21  # floats of the problems that are solved at once; larger ones go one after the other, warm-started


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

    After the path, both neighbours of the best C are tried at half the distance, `halvings` times, within its ends.
    """
    tried: dict[float, tuple[float, Tensor]] = {}
    room = max(1, TOGETHER // (len(x) * classes + 24 * (x.shape[1] + 1) * classes))

    def attempt(several: Sequence[float]) -> None:
        for some in (several[i : i + room] for i in range(0, len(several), room)):
            near = [min(tried, key=lambda other: abs(math.log(other / c)), default=None) for c in some]
            starts = [None if n is None else tried[n][1] for n in near]
            for c, probe in zip(some, fit_together(x, y, classes, some, starts)):
                tried[c] = float((probe(x_val).argmax(1) == y_val).double().mean()), probe.weight

    def best() -> float:
        return max(sorted(tried), key=lambda c: tried[c][0])

    ordered = sorted(path)
    if not ordered or ordered[0] <= 0:
        raise BadData(f"the path of C is {list(path)}: give at least one number above 0")
    attempt(ordered)
    step = math.log10(ordered[-1] / ordered[0]) / max(1, len(ordered) - 1)
    for _ in range(halvings if step else 0):
        step, peak = step / 2, best()
        attempt([c for c in (peak / 10**step, peak * 10**step) if ordered[0] <= c <= ordered[-1]])
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
    return fit_together(x, y, classes, [c], [start], tol, max_steps)[0]


def fit_together(
    x: Tensor,
    y: Tensor,
    classes: int,
    several: Sequence[float],
    starts: Sequence[Tensor | None],
    tol: float = 1e-5,
    max_steps: int = 1000,
) -> list[Probe]:
    """The same for several C at once: one matrix product a step serves them all."""
    refuse_nan(x)
    x, (n, width) = x.float(), x.shape
    rows = torch.arange(n)
    # the objective is divided by C * N: its scale does not depend on C
    penalties = torch.tensor([1 / (c * n) for c in several], dtype=torch.float64)

    def objective(w: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """[S, (width + 1) * classes] -> values [S] in fp64, gradients like `w`; `which` problems they are."""
        weight = w.view(-1, width + 1, classes)
        side_by_side = weight[:, :-1].permute(1, 0, 2).reshape(width, -1)
        logits = torch.addmm(weight[:, -1].reshape(-1), x, side_by_side).view(n, -1, classes)  # [N, S, C]
        norm = logits.logsumexp(2, keepdim=True)
        value = (norm[..., 0].double() - logits[rows, :, y].double()).mean(0)  # [S]
        p = logits.sub_(norm).exp_()
        p[rows, :, y] -= 1
        gradient, penalty = torch.empty_like(weight), penalties[which]
        gradient[:, :-1] = (x.T @ p.view(n, -1)).view(width, -1, classes).permute(1, 0, 2)
        gradient[:, -1] = p.sum(0)
        gradient /= n
        gradient[:, :-1] += penalty.float()[:, None, None] * weight[:, :-1]
        value += 0.5 * penalty * weight[:, :-1].double().pow(2).sum((1, 2))
        return value, gradient.flatten(1)

    zero = torch.zeros(width + 1, classes)
    w, steps = lbfgs(objective, torch.stack([zero if s is None else s for s in starts]).flatten(1), tol, max_steps)
    return [Probe(one.view(width + 1, classes), int(k)) for one, k in zip(w, steps)]


def refuse_nan(x: Tensor) -> None:
    bad = (~x.isfinite()).any(1)
    if bad.any():
        first = int(bad.int().argmax())
        raise BadData(f"{int(bad.sum())} of {len(x)} rows of the features hold NaN or infinity, e.g. row {first}")
