"""Boxes that may hold a thing, of any class: from the pixels alone, the same every time, nothing learnt.

"regions": a picture is cut into regions of like colour (Felzenszwalb and Huttenlocher 2004), neighbours are joined
by colour, size and how well they fill their common box (selective search, Uijlings et al. 2013), and each region on
the way gives its box. "grid": squares of several sizes at even steps. Either way a box scores by how little it
cuts through regions (superpixel straddling, Alexe et al. 2012) and how its colours differ from those around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from emblema.core.boxes import Boxes

BINS = 8  # of a colour histogram, a channel
KINDS = ("regions", "grid", "both")


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """Class-agnostic boxes of a picture, best first."""

    kind: str = "regions"  # or "grid", or "both"
    most: int = 50
    side: int = 128  # pixels of the longer side at which regions are looked for
    scales: tuple[float, ...] = (300.0,)  # of regions: a larger one gives larger regions
    smallest: float = 0.002  # share of the picture that a region covers at least
    apart: float = 0.8  # boxes that overlap more are one

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"proposals of kind {self.kind!r}: choose {', '.join(KINDS)}")

    def __call__(self, pixels: Tensor) -> Boxes:
        """uint8 [3, H, W] -> at most `most` boxes in its pixels, with scores in 0..1."""
        height, width = pixels.shape[-2:]
        shrink = min(1.0, self.side / max(height, width))
        h, w = max(1, round(height * shrink)), max(1, round(width * shrink))
        small = F.interpolate(pixels[None].float(), (h, w), mode="bilinear", antialias=True)[0] / 255  # [3, h, w]
        fewest = max(4, round(self.smallest * h * w))
        cuts = [regions(small, scale, fewest) for scale in self.scales]
        boxes = [grid(h, w)] if self.kind != "regions" else []
        if self.kind != "grid":
            boxes += [grouped(small, labels) for labels in cuts]
        found = torch.unique(torch.cat(boxes), dim=0)
        found = found[(found[:, 2:] - found[:, :2]).amin(1) >= 2]
        score = torch.stack([straddling(found, labels) for labels in cuts]).mean(0) * contrast(found, small)
        order = score.argsort(descending=True, stable=True)
        found, score = found[order], score[order]
        kept = nms(found, score, self.apart)[: self.most]
        to_picture = torch.tensor([width / w, height / h] * 2)
        return Boxes(found[kept] * to_picture, scores=score[kept])


def regions(pixels: Tensor, scale: float, smallest: int) -> np.ndarray:
    """Region numbers [H, W] from 0 on. Float [3, H, W] within 0..1.

    Neighbouring pixels, the most alike first, are joined when they differ by less than either side's own largest
    difference plus scale / (its size); colours count 0..255.
    """
    smooth = _blurred(pixels).permute(1, 2, 0).numpy() * 255  # [H, W, 3]
    h, w = smooth.shape[:2]
    number = np.arange(h * w).reshape(h, w)
    steps = ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1]))
    weight = np.concatenate([np.linalg.norm(smooth[a] - smooth[b], axis=-1).ravel() for a, b in steps])
    ends = np.concatenate([np.stack([number[a].ravel(), number[b].ravel()], 1) for a, b in steps])
    order = np.argsort(weight, kind="stable")
    parent, size, limit = list(range(h * w)), [1] * (h * w), [scale] * (h * w)

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    pairs = ends[order].tolist()
    for (i, j), difference in zip(pairs, weight[order].tolist()):
        a, b = root(i), root(j)
        if a != b and difference <= limit[a] and difference <= limit[b]:
            parent[b] = a
            size[a] += size[b]
            limit[a] = difference + scale / size[a]
    for i, j in pairs:  # what is too small joins the neighbour it is most like
        a, b = root(i), root(j)
        if a != b and min(size[a], size[b]) < smallest:
            parent[b] = a
            size[a] += size[b]
    return np.unique([root(i) for i in range(h * w)], return_inverse=True)[1].reshape(h, w)


def grouped(pixels: Tensor, labels: np.ndarray) -> Tensor:
    """The boxes of all regions, and of all that come about while the two most alike neighbours join: [M, 4]"""
    count, (h, w) = int(labels.max()) + 1, labels.shape
    flat = labels.ravel()
    size = np.bincount(flat, minlength=count).astype(float)
    codes = _codes(pixels).reshape(3, -1)
    colour = np.stack([np.bincount(flat * BINS + c, minlength=count * BINS) for c in codes], 1).reshape(count, -1)
    box = _extents(labels, count)
    near: dict[int, set[int]] = {i: set() for i in range(count)}
    for a, b in ((labels[:, 1:], labels[:, :-1]), (labels[1:], labels[:-1])):
        for i, j in np.unique(np.stack([a[a != b], b[a != b]], 1), axis=0).tolist():
            near[i].add(j)
            near[j].add(i)
    sizes, colours, boxes = list(size), list(colour.astype(float)), [tuple(b) for b in box.tolist()]

    def likeness(i: int, j: int) -> float:
        x1, y1, x2, y2 = _around(boxes[i], boxes[j])
        both = sizes[i] + sizes[j]
        alike = np.minimum(colours[i] / sizes[i], colours[j] / sizes[j]).sum() / 3
        return alike + (1 - both / (h * w)) + (1 - ((x2 - x1) * (y2 - y1) - both) / (h * w))

    alike = {(i, j): likeness(i, j) for i in near for j in near[i] if i < j}
    while alike:
        i, j = max(alike, key=alike.__getitem__)
        new = len(boxes)
        boxes.append(_around(boxes[i], boxes[j]))
        sizes.append(sizes[i] + sizes[j])
        colours.append(colours[i] + colours[j])
        near[new] = (near.pop(i) | near.pop(j)) - {i, j}
        alike = {pair: v for pair, v in alike.items() if not {i, j} & {*pair}}
        for k in sorted(near[new]):
            near[k] = (near[k] - {i, j}) | {new}
            alike[k, new] = likeness(k, new)
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def grid(height: int, width: int, shares: tuple[float, ...] = (0.25, 0.35, 0.5, 0.7), step: float = 0.25) -> Tensor:
    """Squares of these shares of the shorter side, a quarter of themselves apart, inside the picture: [M, 4]"""
    boxes = []
    for share in shares:
        side = min(height, width) * share
        ys, xs = (np.linspace(0, n - side, max(2, round((n - side) / (side * step)) + 1)) for n in (height, width))
        boxes += [(x, y, x + side, y + side) for y in ys for x in xs]
    return torch.tensor(boxes, dtype=torch.float32)


def straddling(boxes: Tensor, labels: np.ndarray) -> Tensor:
    """1 - the share of the box that belongs to regions which it cuts, each by its smaller part: [M], at most 1."""
    count = int(labels.max()) + 1
    inside = _sums(np.arange(count)[:, None, None] == labels, boxes)  # [M, regions]
    whole = torch.from_numpy(np.bincount(labels.ravel(), minlength=count)).float()
    area = inside.sum(1).clamp(min=1)
    return (1 - torch.minimum(inside, whole - inside).sum(1) / area).clamp(min=0)


def contrast(boxes: Tensor, pixels: Tensor, ring: float = 0.5) -> Tensor:
    """How the colours in a box differ from those in a ring around it of `ring` its size, within 0..1: [M]"""
    codes = _codes(pixels)
    h, w = pixels.shape[-2:]
    planes = np.concatenate([np.arange(BINS)[:, None, None] == c for c in codes])  # [3 * BINS, H, W]
    inner = _sums(planes, boxes)
    grow = (boxes[:, 2:] - boxes[:, :2]) * ring / 2
    outer = torch.cat([boxes[:, :2] - grow, boxes[:, 2:] + grow], 1)
    outer = torch.minimum(outer.clamp(min=0), torch.tensor([w, h, w, h]).float())
    around = (_sums(planes, outer) - inner).clamp(min=0)
    share = lambda x: x / x.sum(1, keepdim=True).clamp(min=1)
    differ = (share(inner) - share(around)).abs().sum(1) / 2  # 1 where they share no colour
    return torch.where(around.sum(1) > 0, differ, 0.0)  # the whole picture stands out from nothing


def _sums(planes: np.ndarray, boxes: Tensor) -> Tensor:
    """Sums of bool planes [K, H, W] over boxes [M, 4], by integral images: [M, K]"""
    total = np.zeros((len(planes), planes.shape[1] + 1, planes.shape[2] + 1), dtype=np.int32)
    np.cumsum(planes, 1, out=total[:, 1:, 1:], dtype=np.int32)
    np.cumsum(total[:, 1:, 1:], 2, out=total[:, 1:, 1:])
    x1, y1, x2, y2 = boxes.round().long().T.numpy()
    return torch.from_numpy(total[:, y2, x2] - total[:, y1, x2] - total[:, y2, x1] + total[:, y1, x1]).T.float()


def _codes(pixels: Tensor) -> np.ndarray:
    """Histogram bin of each pixel and channel: [3, H, W]"""
    return (pixels * BINS).long().clamp(0, BINS - 1).numpy()


def _extents(labels: np.ndarray, count: int) -> np.ndarray:
    """The box of each region: [regions, 4]"""
    y, x = np.indices(labels.shape)
    low, high = np.full((2, count), max(labels.shape)), np.zeros((2, count), dtype=int)
    for axis, at in enumerate((x, y)):
        np.minimum.at(low[axis], labels, at)
        np.maximum.at(high[axis], labels, at + 1)
    return np.stack([*low, *high], 1)


def _around(a: tuple, b: tuple) -> tuple:
    return (min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))


def _blurred(pixels: Tensor, sigma: float = 0.8) -> Tensor:
    """A Gaussian blur of float [3, H, W]."""
    at = torch.arange(-2.0, 3.0)
    kernel = torch.exp(-(at**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(pixels[:, None], (2, 2, 2, 2), mode="replicate")  # [3, 1, H + 4, W + 4]
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, 5)), kernel.view(1, 1, 5, 1))[:, 0]
