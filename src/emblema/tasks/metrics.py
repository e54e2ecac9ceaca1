"""What is counted, on numbers small enough to check by hand. All functions are pure.

Ties count against the model: a class (or caption) with the same score as the right one stands before it. A
model that gives every class the same score is therefore right never, not always. NaN is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from emblema.core.errors import BadData

ECE_BINS = 15


def refuse_nan(x: Tensor, what: str = "scores") -> Tensor:
    """`x` itself, or an error that says how many of its rows hold NaN."""
    bad = torch.isnan(x)
    if bad.any():
        rows = int(bad.flatten(1).any(1).sum()) if x.dim() > 1 else int(bad.sum())
        raise BadData(
            f"{rows} of {len(x)} {what} are NaN: a comparison with NaN is always false, so the metric would "
            "mean nothing. Look for an overflow in the model (try --precision fp32) or a broken input."
        )
    return x


def ranks(scores: Tensor, target: Tensor) -> Tensor:
    """Place of the right class of each row, from 1: [N, C], [N] -> [N]; ties count against."""
    if scores.dim() != 2 or target.shape != scores.shape[:1]:
        raise ValueError(f"expected scores [N, C] and targets [N], got {tuple(scores.shape)}, {tuple(target.shape)}")
    if len(target) and (target.min() < 0 or target.max() >= scores.shape[1]):
        raise BadData(
            f"labels go from {int(target.min())} to {int(target.max())}, but there are {scores.shape[1]} classes "
            "(0 is the first)"
        )
    refuse_nan(scores)
    right = scores.gather(1, target[:, None])  # [N, 1]
    return (scores >= right).sum(1)  # the right class counts itself: places from 1


def top(rank: Tensor, k: int) -> Tensor:
    """1.0 where the place is at most k: [N] -> [N]."""
    return (rank <= k).double()


def per_class(correct: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Accuracy [C] (NaN where a class has no sample) and samples [C] of each class."""
    count = torch.bincount(labels, minlength=classes)
    right = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, correct.double())
    return right / count, count


def mean_per_class(correct: Tensor, labels: Tensor, classes: int) -> float:
    """Mean of the classes' accuracies; a class without samples does not count."""
    accuracy, count = per_class(correct, labels, classes)
    return float(accuracy[count > 0].mean())


def calibration_bins(confidence: Tensor, bins: int = ECE_BINS) -> Tensor:
    """Bin of each confidence: `bins` of equal width over [0, 1], each closed above, the first also below. [N]"""
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
    return torch.bucketize(confidence.double(), edges)


def ece(confidence: Tensor, correct: Tensor, bins: int = ECE_BINS) -> float:
    """Expected calibration error: sum over bins of (share of samples) * |accuracy - mean confidence|.

    15 equal-width bins of the top-1 confidence, as in Guo et al. 2017.
    """
    refuse_nan(confidence, "confidences")
    gap = torch.zeros(bins, dtype=torch.float64)
    gap.index_add_(0, calibration_bins(confidence, bins), correct.double() - confidence.double())
    return float(gap.abs().sum() / len(confidence))


def recall(rank: Tensor, k: int) -> float:
    """R@k: share of the queries with one of their right answers among the first k."""
    return float((rank <= k).double().mean())


def median_rank(rank: Tensor) -> float:
    """The middle place (the mean of the two middle ones of an even number of queries)."""
    ordered = rank.double().sort().values
    return float((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)


def rsum(recalls: dict[str, float]) -> float:
    """Sum of all recalls in per cent, both directions: at most 600 for R@1, 5, 10."""
    return 100 * sum(recalls.values())


def average_precision(scores: Tensor, positive: Tensor, weights: Tensor | None = None, points: int = 0) -> Tensor:
    """Average precision of one class: [N], [N] -> [] (or [R] with `weights` [R, N]); NaN without a positive.

    With `points=0` the sum over all thresholds of precision times gain in recall (scikit-learn's definition; equal
    scores share a threshold). With `points=11` PASCAL VOC 2007's: the mean over recalls 0, 0.1, ..., 1 of the best
    precision at that recall or more.
    """
    order = refuse_nan(scores).argsort(descending=True, stable=True)
    weights = torch.ones(1, len(scores), dtype=torch.float64) if weights is None else weights[:, order].double()
    drawn, found = weights.cumsum(1), (weights * positive[order].double()).cumsum(1)  # [R, N]
    last = torch.ones(len(scores), dtype=torch.bool)  # of each run of equal scores
    last[:-1] = scores[order][1:] != scores[order][:-1]
    drawn, found = drawn[:, last], found[:, last]
    total = found[:, -1:]
    precision, recall = found / drawn.clamp(min=1e-12), found / total
    if points:
        best = precision.flip(1).cummax(1).values.flip(1)
        levels = torch.linspace(0, 1, points, dtype=torch.float64).expand(len(best), -1).contiguous()
        at = torch.searchsorted(recall.contiguous(), levels - 1e-9)  # the first threshold of that recall
        value = best.gather(1, at.clamp(max=best.shape[1] - 1)).mean(1)
    else:
        value = (precision * recall.diff(dim=1, prepend=torch.zeros_like(total))).sum(1)
    return torch.where(total[:, 0] > 0, value, torch.nan).squeeze(0 if len(value) == 1 else -1)


def roc_auc(scores: Tensor, positive: Tensor, weights: Tensor | None = None) -> Tensor:
    """Area under the ROC curve: how often a positive scores above a negative, equal scores count half.

    [N], [N] -> [] (or [R] with `weights` [R, N]); NaN where one kind is missing.
    """
    _, group = refuse_nan(scores).unique(return_inverse=True)  # ascending
    weights = torch.ones(1, len(scores), dtype=torch.float64) if weights is None else weights.double()
    own = torch.zeros(len(weights), int(group.max()) + 1, dtype=torch.float64)
    up = own.index_add(1, group, weights * positive.double())
    down = own.index_add(1, group, weights * (1 - positive.double()))
    wins = (up * (down.cumsum(1) - down / 2)).sum(1)
    value = wins / (up.sum(1) * down.sum(1))  # 0 / 0 is NaN
    return value.squeeze(0 if len(value) == 1 else -1)


def harmonic(a: Tensor, b: Tensor) -> Tensor:
    """2ab / (a + b), 0 where both are 0: the headline of base-to-novel protocols."""
    return 2 * a * b / (a + b).clamp(min=1e-300)
