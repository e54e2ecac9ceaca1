"""Anchors of a dense detector: where they stand, which thing each answers for (ATSS), and boxes from offsets.

Zhang et al. 2020 (1912.02424): one square anchor a place; the bar of overlap is set for each thing by its candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

NEAR = 9  # candidates a level
STEP = (0.1, 0.2)  # of an offset, in sides of the anchor and in ln(side)
LONGEST = 4.0  # bound of ln(side of the box / side of the anchor)


def square_anchors(grids: Sequence[tuple[int, int]], strides: Sequence[float], side: float) -> Tensor:
    """One anchor in the middle of each place, `side` strides wide, level after level: [N, 4] corners"""
    levels = []
    for (height, width), stride in zip(grids, strides):
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        centre = torch.stack([x, y], -1).flatten(0, 1) * stride  # [h w, 2]
        levels.append(torch.cat([centre - side * stride / 2, centre + side * stride / 2], 1))
    return torch.cat(levels)


def answers_for(anchors: Tensor, levels: Sequence[int], boxes: Tensor, near: int = NEAR) -> Tensor:
    """The number of the thing that each anchor answers for, -1 for none: [N, 4], [M, 4] -> long [N]

    Candidates of a thing are the `near` anchors of each level (`levels` counts them) whose centres are nearest; those
    whose overlap is at least mean + standard deviation of the candidates', and whose centre is inside, are its own. An
    anchor of two things belongs to that with which it overlaps more.
    """
    if not len(boxes):
        return torch.full((len(anchors),), -1, device=anchors.device)
    overlap, centre = box_iou(anchors, boxes), middle(anchors)  # [N, M], [N, 2]
    far = torch.cdist(centre, middle(boxes))  # [N, M]
    first, rows = 0, []
    for level in far.split(list(levels)):
        rows.append(first + level.topk(min(near, len(level)), 0, largest=False).indices)
        first += len(level)
    candidates = torch.cat(rows)  # [K, M]
    among = overlap.gather(0, candidates)
    bar = among.mean(0) + (among.std(0) if len(among) > 1 else 0)  # [M]
    inside = sides(centre[:, None], boxes).amin(-1) > 0.01  # [N, M]
    own = (among >= bar) & inside.gather(0, candidates)
    best, which = torch.full_like(overlap, -1).scatter(0, candidates, torch.where(own, among, -1.0)).max(1)
    return torch.where(best >= 0, which, -1)


def centreness(centre: Tensor, boxes: Tensor) -> Tensor:
    """1 in the middle of a box, 0 at its border: [..., 2], [..., 4] -> [...]"""
    across, down = (s.amin(-1).clamp(min=0) / s.amax(-1) for s in sides(centre, boxes).unflatten(-1, (2, 2)).unbind(-1))
    return (across * down).sqrt()


def decoded(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Offsets [..., 4] of anchors [..., 4] -> corners [..., 4]: the centre moves by sides, the sides grow by powers."""
    size = anchors[..., 2:] - anchors[..., :2]
    centre = middle(anchors) + STEP[0] * offsets[..., :2] * size
    half = size * (STEP[1] * offsets[..., 2:]).clamp(max=LONGEST).exp() / 2
    return torch.cat([centre - half, centre + half], -1)


def middle(boxes: Tensor) -> Tensor:
    """[..., 4] -> [..., 2]"""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def sides(centre: Tensor, boxes: Tensor) -> Tensor:
    """How far a point is inside from the left, top, right and bottom border: [..., 4]"""
    return torch.cat(torch.broadcast_tensors(centre - boxes[..., :2], boxes[..., 2:] - centre), -1)
