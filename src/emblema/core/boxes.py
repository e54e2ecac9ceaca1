"""Boxes and masks as values that say what they hold."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

NOTHING = 255  # of a label map: no class, or not to be counted


@dataclass(frozen=True)
class Boxes:
    """Boxes of one image in pixels, corners (x1, y1, x2, y2) with x2, y2 exclusive."""

    xyxy: Tensor  # [N, 4] float
    labels: Tensor | None = None  # [N] long, index into class_names
    scores: Tensor | None = None  # [N] float, detections only
    crowd: Tensor | None = None  # [N] bool, COCO's iscrowd
    areas: Tensor | None = None  # [N] float, square pixels of the things themselves where the data say them
    masks: Tensor | None = None  # [N, H, W] bool

    def __post_init__(self) -> None:
        if self.xyxy.dim() != 2 or self.xyxy.shape[-1] != 4:
            raise ValueError(f"boxes must be [N, 4] corners, got {tuple(self.xyxy.shape)}")
        for name in ("labels", "scores", "crowd", "areas", "masks"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.xyxy):
                raise ValueError(f"{len(self.xyxy)} boxes but {len(value)} {name}")

    def __len__(self) -> int:
        return len(self.xyxy)

    @classmethod
    def from_xywh(cls, xywh: Tensor, **rest) -> Boxes:
        """From COCO's (x, y, width, height)."""
        return cls(torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], -1), **rest)

    def at(self, index: Tensor) -> Boxes:
        """The boxes that a bool [N] or a long [M] picks, with all that belongs to them."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: v[index] for name, v in parts.items() if v is not None})

    def visible(self, width: float, height: float) -> tuple[Boxes, Tensor]:
        """The boxes cut to a picture, without those of which no pixel is left, and a bool [N] that says which stay.

        A corner that is no number leaves nothing.
        """
        size = torch.tensor([width, height] * 2, dtype=self.xyxy.dtype)
        cut = replace(self, xyxy=torch.minimum(self.xyxy.clamp(min=0), size))
        stays = ((cut.xyxy[:, 2:] - cut.xyxy[:, :2]) >= 1).all(1)
        if not stays.all():
            warnings.warn("boxes outside their picture, or without area, are left out", stacklevel=2)
        return cut.at(stays), stays

    @property
    def area(self) -> Tensor:
        """[N] square pixels of the boxes."""
        return (self.xyxy[:, 2:] - self.xyxy[:, :2]).clamp(min=0).prod(-1)


@dataclass(frozen=True)
class Masks:
    """Segmentation of one image: a label map, and optionally a mask an instance."""

    labels: Tensor  # [H, W] long, 255 is ignored
    instances: Tensor | None = None  # [N, H, W] bool
