"""Average precision as COCO defines it, and LVIS's variant, with weights on images so that it can be resampled.

A detection is right when it overlaps an unclaimed thing of its class by at least the threshold; detections claim in
the order of their scores. Precision is made to fall with recall and read at 101 recalls. Things in a crowd, or outside
the range of areas, neither count as missed nor make the detections on them wrong. (Lin et al. 2014; pycocotools.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from emblema.core.boxes import Boxes
from emblema.core.errors import BadData
from emblema.tasks.metrics import refuse_nan

# numpy's roundings, as an overlap of exactly 3/5 stands or falls with the last bit
THRESHOLDS = torch.from_numpy(np.linspace(0.5, 0.95, 10))  # of overlap
RECALLS = torch.from_numpy(np.linspace(0, 1, 101))
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}


@dataclass(frozen=True)
class Matched:
    """What became of the detections of one class, best score first. A areas, T thresholds, D detections, N images."""

    image: Tensor  # [D] number of the image
    right: Tensor  # [A, T, D] bool
    ignored: Tensor  # [A, T, D] bool
    things: Tensor  # [A, N] how many there were to find


def matched(
    found: Sequence[Boxes],
    truth: Sequence[Boxes],
    classes: int,
    *,
    kind: str = "boxes",  # or "masks"
    most: int = 100,  # detections an image and class
    most_an_image: int | None = None,  # detections an image, over all classes (LVIS: 300)
    absent: Sequence[Sequence[int]] | None = None,  # LVIS: classes looked for and not there; others are not judged
    partial: Sequence[Sequence[int]] | None = None,  # LVIS: classes of which not all things are marked
) -> list[Matched]:
    """One `Matched` a class from detections and truths, image by image. Scores that are NaN are refused."""
    if len(found) != len(truth):
        raise BadData(f"{len(found)} images with detections, {len(truth)} with truths: give one each, empty or not")
    found = [_best(boxes, most_an_image, i) for i, boxes in enumerate(found)]
    per_class: list[list[tuple[Tensor, ...]]] = [[] for _ in range(classes)]
    things = torch.zeros(classes, len(AREAS), len(truth), dtype=torch.float64)
    for i, (told, true) in enumerate(zip(found, truth)):
        told_labels, true_labels = (_labels(boxes, classes) for boxes in (told, true))
        judged = set(true_labels.tolist())
        judged |= set(told_labels.tolist()) if absent is None else set(absent[i])
        for c in sorted(judged):
            guess, thing = told.at(told_labels == c), true.at(true_labels == c)
            guess = _best(guess, most)
            some = partial is not None and c in partial[i]
            right, ignored, count = _match(guess, thing, kind, some)
            things[c, :, i] = count
            if len(guess):
                assert guess.scores is not None
                per_class[c].append((guess.scores.double(), torch.full((len(guess),), i), right, ignored))
    return [_joined(parts, things[c]) for c, parts in enumerate(per_class)]


def average_precision(one: Matched, weights: Tensor | None = None, areas: slice = slice(None)) -> Tensor:
    """AP of one class [A, T, R] for image weights [R, N] (default: all 1); NaN where there was nothing to find."""
    images = one.things.shape[1]
    weights = torch.ones(1, images, dtype=torch.float64) if weights is None else weights
    right, ignored, things = one.right[areas], one.ignored[areas], one.things[areas]
    total = things @ weights.T  # [A, R]
    drawn = weights[:, one.image]  # [R, D]
    out = torch.full((*right.shape[:2], len(weights)), torch.nan, dtype=torch.float64)
    for a in range(right.shape[0]):
        some = total[a] > 0
        for t in range(right.shape[1]):
            out[a, t, some] = _area_under(
                drawn[some] * right[a, t], drawn[some] * ~(right[a, t] | ignored[a, t]), total[a, some]
            )
    return out


def recall(one: Matched) -> Tensor:
    """The share of things that were found [A, T]; NaN where there was nothing to find."""
    return (one.right & ~one.ignored).sum(-1) / one.things.sum(-1)[:, None]


def _area_under(right: Tensor, wrong: Tensor, total: Tensor) -> Tensor:
    """Mean precision at 101 recalls: [R, D], [R, D], [R] -> [R]"""
    if not right.shape[1]:
        return torch.zeros(len(total), dtype=torch.float64)
    tp, fp = right.cumsum(1), wrong.cumsum(1)
    precision = (tp / (tp + fp).clamp(min=1e-12)).flip(1).cummax(1).values.flip(1)
    at = torch.searchsorted(tp / total[:, None], RECALLS.expand(len(total), -1).contiguous())  # [R, 101]
    read = torch.cat([precision, precision.new_zeros(len(total), 1)], 1)  # recalls never reached: precision 0
    return read.gather(1, at).mean(1)


def _match(found: Boxes, truth: Boxes, kind: str, partial: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(right [A, T, D], ignored [A, T, D], things [A]) of one class on one image; `found` by falling score."""
    crowd = (torch.zeros(len(truth), dtype=torch.bool) if truth.crowd is None else truth.crowd).numpy()
    overlap = overlaps(found, truth, kind).numpy()  # [D, G]
    outside = lambda sizes: np.stack([(sizes < low) | (sizes > high) for low, high in AREAS.values()])
    passive = crowd | outside(_sizes(truth, kind).numpy())  # [A, G] neither missed nor wrong to find
    unjudged = partial | outside(_sizes(found, kind, detected=True).numpy())  # [A, D]
    right, ignored = np.zeros((2, len(AREAS), len(THRESHOLDS), len(found)), dtype=bool)
    free = np.ones((len(AREAS), len(THRESHOLDS), len(truth)), dtype=bool)  # [A, T, G]
    for d in range(len(found) if len(truth) else 0):
        fits = overlap[d] >= THRESHOLDS.numpy()[:, None]  # [T, G]
        for among, claims in ((~passive, right), (passive, ignored)):  # what is to be found comes first
            open_ = fits & free & among[:, None] & ~right[:, :, d, None]
            at = len(truth) - 1 - np.where(open_, overlap[d], -1.0)[..., ::-1].argmax(-1)  # of equals the last
            claims[:, :, d] = open_.any(-1)
            taken = open_ & (np.arange(len(truth)) == at[..., None])
            free &= ~taken | crowd  # a crowd holds any number
    ignored |= ~right & unjudged[:, None]
    return torch.from_numpy(right), torch.from_numpy(ignored), torch.from_numpy((~passive).sum(1).astype(np.float64))


def overlaps(found: Boxes, truth: Boxes, kind: str = "boxes") -> Tensor:
    """Intersection over union [D, G]; over a crowd it is the share of the detection that lies inside."""
    if kind == "masks":
        if found.masks is None or truth.masks is None:
            raise BadData("overlap of masks needs masks in both: measure boxes, or let the detector give `masks`")
        a, b = found.masks.flatten(1).double(), truth.masks.flatten(1).double()
        inside = a @ b.T
        own, others = a.sum(1), b.sum(1)
    else:
        a, b = found.xyxy.double(), truth.xyxy.double()
        low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
        inside = (high - low).clamp(min=0).prod(-1)  # [D, G]
        own, others = ((x[:, 2:] - x[:, :2]).clamp(min=0).prod(-1) for x in (a, b))
    union = own[:, None] + others - inside
    if truth.crowd is not None:
        union = torch.where(truth.crowd, own[:, None], union)
    return inside / union.clamp(min=1e-12)


def _sizes(boxes: Boxes, kind: str, detected: bool = False) -> Tensor:
    """Square pixels [N] by which things are small, medium or large: as annotated; detections by what they cover."""
    if boxes.areas is not None and not detected:
        return boxes.areas.double()
    if kind == "masks" and boxes.masks is not None:
        return boxes.masks.flatten(1).sum(1).double()
    return (boxes.xyxy[:, 2:].double() - boxes.xyxy[:, :2].double()).clamp(min=0).prod(-1)


def _best(found: Boxes, most: int | None, image: int | None = None) -> Boxes:
    """By falling score, equals in their order; at most so many."""
    if found.scores is None:
        if len(found):
            raise BadData(f"the detections of image {image} have no scores: AP needs an order")
        return Boxes(found.xyxy, torch.empty(0, dtype=torch.long), torch.empty(0))
    refuse_nan(found.scores, f"scores of image {image}" if image is not None else "scores")
    return found.at(found.scores.argsort(descending=True, stable=True)[:most])


def _labels(boxes: Boxes, classes: int) -> Tensor:
    if boxes.labels is None:
        if len(boxes):
            raise BadData("boxes without labels: AP is of classes; give `labels`, 0 for all where there are none")
        return torch.empty(0, dtype=torch.long)
    if len(boxes) and (boxes.labels.min() < 0 or boxes.labels.max() >= classes):
        raise BadData(f"box labels go to {int(boxes.labels.max())}, but there are {classes} classes (0 is the first)")
    return boxes.labels


def _joined(parts: list[tuple[Tensor, ...]], things: Tensor) -> Matched:
    shape = (len(AREAS), len(THRESHOLDS), 0)
    if not parts:
        empty = torch.zeros(shape, dtype=torch.bool)
        return Matched(torch.empty(0, dtype=torch.long), empty, empty, things)
    scores, image, right, ignored = (torch.cat(p, -1) for p in zip(*parts))
    order = scores.argsort(descending=True, stable=True)
    return Matched(image[order], right[..., order], ignored[..., order], things)
