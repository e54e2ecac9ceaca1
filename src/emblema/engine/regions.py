"""A two-tower model as a detector of classes given in words: class-agnostic boxes, classified by their pictures.

The survey's zero-shot detection: proposals, crops of 1.0 and 1.5 times their size (ViLD, Gu et al. 2022) or features
pooled from a dense map (RoIAlign), class texts, and non-maximum suppression a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import batched_nms, roi_align

from emblema.core.boxes import Boxes
from emblema.core.errors import BadData
from emblema.engine.dense import WORDS, DenseFeatures
from emblema.frameworks.vlm import unit
from emblema.parts.proposals import Proposals


@dataclass(frozen=True, kw_only=True)
class ZeroShotDetector(DenseFeatures):
    """`detect(pictures, labels)` of a model and words.

    A box's score for a class is p^(1 - w) o^w: p the class's probability among the labels and `backgrounds`, o the
    objectness of its proposal, w = `objectness`. Scores below `floor` are dropped.
    """

    regions: str = "crops"  # or "pooled": RoIAlign on the dense features
    proposals: str = "regions"  # see `Proposals`; a proposals file replaces them
    most_proposals: int = 50
    crops: tuple[float, ...] = (1.0,)  # sizes of the crops, their vectors are added
    backgrounds: tuple[str, ...] = WORDS
    objectness: float = 0.0
    floor: float = 0.05
    nms: float = 0.5
    most: int = 100  # detections a picture

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.regions not in ("crops", "pooled"):
            raise BadData(f"regions {self.regions!r}: choose crops or pooled")

    @torch.inference_mode()
    def detect(
        self,
        model: Any,
        images: Sequence[Image.Image],
        labels: Sequence[str],
        templates: Sequence[str] | None = None,
        given: Sequence[Boxes] | None = None,
    ) -> list[Boxes]:
        """Boxes with labels (numbers in `labels`) and scores, best first. `given` are proposals, one `Boxes` each."""
        words = [*labels, *(w for w in self.backgrounds if w not in labels)]
        z_text = model.class_vectors(words, templates)
        if given is None:
            find = Proposals(kind=self.proposals, most=self.most_proposals)
            given = [find(_tensor(image)) for image in images]
        given = [replace(boxes, xyxy=inside(boxes.xyxy, image)) for boxes, image in zip(given, images)]
        vectors = (self._pooled if self.regions == "pooled" else self.cropped)(model, images, given)
        return [self._decided(boxes, model.probabilities(z, z_text), len(labels)) for boxes, z in zip(given, vectors)]

    def cropped(self, model: Any, images: Sequence[Image.Image], given: Sequence[Boxes]) -> list[Tensor]:
        """Unit vectors [M, D] of each picture's boxes."""
        pieces = [
            image.crop(tuple(box))  # type: ignore[arg-type]
            for image, boxes in zip(images, given)
            for scale in self.crops
            for box in inside(enlarged(boxes.xyxy, scale), image).round().int().tolist()
        ]
        if not pieces:
            return [torch.empty(0, model.dim) for _ in images]
        z = model.encoder.images(pieces)[0]["pooled"]
        parts = z.split([len(self.crops) * len(boxes) for boxes in given])
        return [unit(z.unflatten(0, (len(self.crops), -1)).sum(0)) if len(z) else z for z in parts]

    def _pooled(self, model: Any, images: Sequence[Image.Image], given: Sequence[Boxes]) -> list[Tensor]:
        found = []
        for image, boxes, map_ in zip(images, given, self(model, [self.pixels(model, image) for image in images])):
            h, w = map_.shape[:2]
            at = boxes.xyxy * torch.tensor([w / image.width, h / image.height] * 2)
            found.append(unit(roi_align(map_.permute(2, 0, 1)[None], [at], 1, aligned=True).flatten(1)))
        return found

    def _decided(self, boxes: Boxes, probability: Tensor, classes: int) -> Boxes:
        """The detections of one picture from the probabilities [M, words] of its boxes."""
        objectness = torch.ones(len(boxes)) if boxes.scores is None else boxes.scores
        score = probability[:, :classes] ** (1 - self.objectness) * objectness[:, None] ** self.objectness
        row, label = (score >= self.floor).nonzero(as_tuple=True)
        kept = batched_nms(boxes.xyxy[row], score[row, label], label, self.nms)[: self.most]
        return Boxes(boxes.xyxy[row[kept]], labels=label[kept], scores=score[row[kept], label[kept]])


def enlarged(xyxy: Tensor, scale: float) -> Tensor:
    """Boxes `scale` times as wide and high about their centres: [N, 4]"""
    grow = (xyxy[:, 2:] - xyxy[:, :2]) * (scale - 1) / 2
    return torch.cat([xyxy[:, :2] - grow, xyxy[:, 2:] + grow], 1)


def inside(xyxy: Tensor, image: Image.Image) -> Tensor:
    """Boxes cut to a picture, at least one pixel of each: [N, 4]"""
    size = torch.tensor([image.width, image.height], dtype=xyxy.dtype)
    low = torch.minimum(xyxy[:, :2].clamp(min=0), size - 1)
    return torch.cat([low, torch.maximum(torch.minimum(xyxy[:, 2:], size), low + 1)], 1)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
