"""Numbers over seeds and data sets: t intervals, paired differences, Holm's correction. No array library is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """A value with its confidence interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return dict(self._asdict())


def over_seeds(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of runs with different seeds, and its t interval; one run has no interval (NaN)."""
    n, mean = len(values), math.fsum(values) / len(values)
    if n < 2:
        return Interval(mean, math.nan, math.nan)
    half = t_quantile((1 + level) / 2, n - 1) * _error(values, mean)
    return Interval(mean, mean - half, mean + half)


def paired(ours: Sequence[float], theirs: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of the differences of pairs (one seed, one data set, two systems), and its t interval."""
    return over_seeds([a - b for a, b in zip(ours, theirs, strict=True)], level)


def paired_p(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Two-sided p of the paired t-test that the mean difference is 0; NaN for one pair or pairs without spread."""
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    if len(gaps) < 2:
        return math.nan
    mean = math.fsum(gaps) / len(gaps)
    error = _error(gaps, mean)
    return 2 * t_tail(abs(mean) / error, len(gaps) - 1) if error else math.nan


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values (1979): compared with 0.05, they keep the chance of any false finding below 5 %.

    NaN (no test was possible) stays NaN and does not count.
    """
    order = sorted((i for i, v in enumerate(p) if not math.isnan(v)), key=lambda i: p[i])
    adjusted, worst = [math.nan] * len(p), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - rank) * p[i]))
        adjusted[i] = worst
    return adjusted


def harmonic(base: float, novel: float) -> float:
    """H of base and novel accuracy: 2 b n / (b + n); 0 when either is 0."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0


def standard_error(values: Sequence[float]) -> float:
    """Of the mean; one value has none (NaN)."""
    return _error(values, math.fsum(values) / len(values)) if len(values) > 1 else math.nan


def _error(values: Sequence[float], mean: float) -> float:
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def t_tail(t: float, freedom: int) -> float:
    """P(T > t) of Student's t for t >= 0: the integral of cos^(freedom - 1) over the angle atan(t / sqrt(freedom))."""
    angle = math.atan2(t, math.sqrt(freedom))
    return max(0.0, (1 - _upper_half(angle, freedom) / _whole(freedom)) / 2)


def t_quantile(p: float, freedom: int) -> float:
    """Student's t: the x with P(T <= x) = p, by bisection on the angle atan(x / sqrt(freedom))."""
    if p < 0.5:
        return -t_quantile(1 - p, freedom)
    total = _whole(freedom)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _upper_half(middle, freedom) < (p - 0.5) * 2 * total else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _whole(freedom: int) -> float:
    """The integral of cos^(freedom - 1) from 0 to pi / 2."""
    return math.sqrt(math.pi) * math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2)) / 2


def _upper_half(angle: float, freedom: int, steps: int = 2000) -> float:
    """Simpson's rule: the integral of cos^(freedom - 1) from 0 to `angle`."""
    width = angle / steps
    inner = (math.cos(i * width) ** (freedom - 1) * (4 if i % 2 else 2) for i in range(1, steps))
    return (1 + math.fsum(inner) + math.cos(angle) ** (freedom - 1)) * width / 3
