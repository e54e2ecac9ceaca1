"""Intersection over union from confusion matrices: what segmentation is measured by.

All pixels of a data set are counted into one matrix, and IoU is read from that. A mean of the images' own IoUs is
another number, which the field's tables do not show.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from emblema.core.boxes import NOTHING
from emblema.core.errors import BadData




def confusion(predicted: Tensor, truth: Tensor, classes: int, ignored: int = NOTHING) -> Tensor:
    """Pixels by (true class, predicted class): two label maps of the same shape -> long [C, C].

    Pixels whose truth is `ignored` do not count, whatever was predicted there. Raises `BadData` on other labels out
    of range: a model must say some class wherever the truth has one.
    """
    if predicted.shape != truth.shape:
        raise BadData(f"the prediction is {tuple(predicted.shape)}, the truth {tuple(truth.shape)}: resize the scores")
    counted = truth != ignored
    told, true = predicted[counted].long(), truth[counted].long()
    for name, labels in (("predicted", told), ("true", true)):
        if len(labels) and (labels.min() < 0 or labels.max() >= classes):
            raise BadData(
                f"{name} labels go from {int(labels.min())} to {int(labels.max())}, but there are {classes} classes "
                f"(0 is the first, {ignored} is ignored in the truth only)"
            )
    return torch.bincount(true * classes + told, minlength=classes**2).view(classes, classes)


def iou(matrix: Tensor) -> Tensor:
    """Intersection over union of each class: [..., C, C] -> [..., C]; NaN for a class neither true nor predicted."""
    matrix = matrix.double()
    hit = matrix.diagonal(dim1=-2, dim2=-1)
    return hit / (matrix.sum(-1) + matrix.sum(-2) - hit)


def class_accuracy(matrix: Tensor) -> Tensor:
    """Share of each class's pixels that are right: [..., C, C] -> [..., C]; NaN for a class without pixels."""
    matrix = matrix.double()
    return matrix.diagonal(dim1=-2, dim2=-1) / matrix.sum(-1)


def pixel_accuracy(matrix: Tensor) -> Tensor:
    """Share of all pixels that are right: [..., C, C] -> [...]"""
    matrix = matrix.double()
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1) / matrix.sum((-2, -1))


def mean_iou(matrix: Tensor, among: Tensor | None = None) -> Tensor:
    """Mean of the classes' IoU, over those that `among` [C] picks: [..., C, C] -> [...]; absent classes do not count."""
    found = iou(matrix)
    return (found if among is None else found[..., among]).nanmean(-1)


def harmonic(seen: Tensor, unseen: Tensor) -> Tensor:
    """2 S U / (S + U); 0 where both are 0."""
    return 2 * seen * unseen / (seen + unseen).clamp(min=1e-12)


def over_images(matrices: Tensor, metric: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A statistic for `statistics.bootstrap`: the images' matrices [N, C, C] summed as drawn, then the metric."""
    flat = matrices.flatten(1).double()
    return lambda weights: metric((weights @ flat).unflatten(1, matrices.shape[1:]))
