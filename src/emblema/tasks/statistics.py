"""How sure a number is: bootstrap intervals over images, tests of two systems on the same images, ranks.

A statistic is a function of weights: [R, N] whole-numbered weights (how often each image was drawn) -> [R]
values. So a thousand resamples are a few matrix products, and the jackknife is the same function again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from emblema.core.intervals import Interval, over_seeds, t_quantile  # noqa: F401  one place to look for all of it

Statistic = Callable[[Tensor], Tensor]
_NORMAL = NormalDist()
_ROWS = 64  # resamples at once: 64 x 50,000 weights are 25 MB
_GROUPS = 200  # of images that the jackknife leaves out one after another


def mean_of(x: Tensor) -> Statistic:
    """The mean of per-image values [N]."""
    x = x.double()
    return lambda weights: weights @ x / weights.sum(1)


def mean_per_class_of(correct: Tensor, labels: Tensor, classes: int) -> Statistic:
    """The mean of the classes' accuracies; a class that was not drawn does not count."""
    order = labels.argsort(stable=True)
    count = torch.bincount(labels, minlength=classes)
    right = correct.double()[order]

    def statistic(weights: Tensor) -> Tensor:
        weights = weights[:, order]
        drawn, good = _segments(weights, count), _segments(weights * right, count)  # [R, C]
        return (good / drawn.clamp(min=1)).sum(1) / (drawn > 0).sum(1)

    return statistic


def ece_of(confidence: Tensor, correct: Tensor, bins: Tensor) -> Statistic:
    """Expected calibration error for given bins [N]."""
    gap = torch.zeros(len(bins), int(bins.max()) + 1, dtype=torch.float64)
    gap[torch.arange(len(bins)), bins] = correct.double() - confidence.double()
    return lambda weights: (weights @ gap).abs().sum(1) / weights.sum(1)


def median_of(x: Tensor) -> Statistic:
    """The median of per-image values [N]: lower and upper middle averaged."""
    ordered, order = x.double().sort()

    def statistic(weights: Tensor) -> Tensor:
        upto = weights[:, order].cumsum(1)  # [R, N]
        half = upto[:, -1:] / 2
        low = ordered[torch.searchsorted(upto, half).clamp(max=len(x) - 1)[:, 0]]
        high = ordered[torch.searchsorted(upto, half, right=True).clamp(max=len(x) - 1)[:, 0]]
        return (low + high) / 2

    return statistic


def _segments(x: Tensor, count: Tensor) -> Tensor:
    """Sums over consecutive runs of `count` [C] columns: [R, N] -> [R, C]"""
    total = torch.cat([x.new_zeros(len(x), 1), x.cumsum(1)], 1)
    ends = count.cumsum(0)
    return total[:, ends] - total[:, ends - count]


def bootstrap(
    statistic: Statistic,
    n: int,
    *,
    method: str = "bca",
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    strata: Tensor | None = None,
) -> Interval:
    """Interval of a statistic of `n` images, drawn with replacement. `method` is "bca" or "percentile".

    With `strata` [N] (class labels) every stratum keeps its size. Means over classes need it: drawn freely, classes
    of few images drop out of many resamples, and the rest is another set of classes.

    BCa (Efron 1987) corrects for bias and for a spread that changes with the value; it is better for skewed
    statistics and few images, and costs a jackknife besides: each image left out, or each of 200 groups where there
    are more. A median, whose jackknife says nothing, is for "percentile".
    """
    if method not in ("bca", "percentile"):
        raise ValueError(f'bootstrap method {method!r}: choose "bca" or "percentile"')
    value = float(statistic(torch.ones(1, n, dtype=torch.float64)))
    if n < 2:
        return Interval(value, math.nan, math.nan)
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for start in range(0, resamples, _ROWS):
        rows = min(_ROWS, resamples - start)
        index = _drawn(rows, n, strata, generator)
        weights = torch.zeros(rows, n, dtype=torch.float64)
        drawn.append(statistic(weights.scatter_add_(1, index, torch.ones_like(weights))))
    values = torch.cat(drawn).sort().values
    tails = ((1 - level) / 2, (1 + level) / 2)
    if method == "bca":
        tails = _bca_tails(statistic, n, values, value, tails)
    low, high = (_quantile(values, p) for p in tails)
    return Interval(value, low, high)


def _drawn(rows: int, n: int, strata: Tensor | None, generator: torch.Generator) -> Tensor:
    """Which images each resample holds: [R, N]"""
    if strata is None:
        return torch.randint(n, (rows, n), generator=generator)
    order, count = strata.argsort(stable=True), torch.bincount(strata)
    own = count[strata[order]]  # [N] images in the stratum of each
    first = (count.cumsum(0) - count)[strata[order]]  # [N] where it starts
    at = (torch.rand(rows, n, generator=generator, dtype=torch.float64) * own).long()
    return order[first + at]


def _bca_tails(statistic: Statistic, n: int, values: Tensor, value: float, tails: Sequence[float]):
    below = float((values < value).double().mean() + (values <= value).double().mean()) / 2
    if not 0 < below < 1:  # all resamples on one side: nothing to correct by
        return tails
    bias = _NORMAL.inv_cdf(below)
    groups = min(n, _GROUPS)
    left_out = [statistic(_without(range(s, min(s + _ROWS, groups)), n, groups)) for s in range(0, groups, _ROWS)]
    apart = torch.cat(left_out).mean() - torch.cat(left_out)
    spread = float((apart**2).sum() ** 1.5)
    acceleration = float((apart**3).sum()) / (6 * spread) if spread > 0 else 0.0  # NaN > 0 is false

    def moved(p: float) -> float:
        z = bias + _NORMAL.inv_cdf(p)
        return _NORMAL.cdf(bias + z / (1 - acceleration * z))

    return tuple(moved(p) for p in tails)


def _without(rows: range, n: int, groups: int) -> Tensor:
    """Weights that leave out every image i with i % groups = r, for each r of `rows`: [R, N]"""
    group = torch.arange(n) % groups  # neighbours, often of one class, are in different ones
    return (group != torch.tensor(rows)[:, None]).double()


def _quantile(ordered: Tensor, p: float) -> float:
    """Linear interpolation between the order statistics, as numpy does."""
    place = p * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (ordered[high] - ordered[low]) * (place - low))


def paired_bootstrap(ours: Statistic, theirs: Statistic, n: int, **options: Any) -> Interval:
    """Interval of the difference of two systems on the same `n` images: both see the same resamples."""
    return bootstrap(lambda weights: ours(weights) - theirs(weights), n, **options)


def mcnemar(ours: Tensor, theirs: Tensor) -> float:
    """Exact two-sided p that two systems [N] err equally often: a binomial test of the images on which they differ.

    McNemar 1947. 1 where they never differ.
    """
    ours, theirs = ours.bool(), theirs.bool()
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    n, k = only_ours + only_theirs, min(only_ours, only_theirs)
    halves = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, halves)))


def permutation_p(ours: Tensor, theirs: Tensor, resamples: int = 9999, seed: int = 0) -> float:
    """Two-sided p that the mean of paired values [N] differs: the pairs' sides are swapped at random (Fisher 1935).

    All 2^N ways are counted where they are at most `resamples`, else the observed one is added to random ones.
    """
    gaps = ours.double() - theirs.double()
    n, seen = len(gaps), gaps.sum().abs() * (1 - 1e-12)
    if n < 63 and 2**n <= resamples:
        signs = torch.arange(2**n)[:, None].bitwise_right_shift(torch.arange(n)).bitwise_and(1).double() * 2 - 1
        return float(((signs @ gaps).abs() >= seen).double().mean())
    generator, beyond = torch.Generator().manual_seed(seed), 0
    for start in range(0, resamples, _ROWS):
        rows = min(_ROWS, resamples - start)
        signs = torch.randint(2, (rows, n), generator=generator).double() * 2 - 1
        beyond += int(((signs @ gaps).abs() >= seen).sum())
    return (beyond + 1) / (resamples + 1)


def rank_intervals(scores: Tensor, resamples: int = 1000, seed: int = 0) -> list[Interval]:
    """Mean rank over data sets of each system, 1 the best, with a bootstrap interval over data sets.

    `scores` [S, D], higher is better; equal scores share the mean of their ranks.
    """
    below = (scores[None] > scores[:, None]).sum(1) + 1  # [S, D] the best rank that a system may claim
    equal = (scores[None] == scores[:, None]).sum(1) - 1
    ranks = below.double() + equal.double() / 2
    return [bootstrap(mean_of(row), scores.shape[1], resamples=resamples, seed=seed) for row in ranks]
