"""Two towers that meet in a dense detector: places of the picture are held against the words of one prompt (GLIP).

The places are the image tower's dense features, halved level by level; the prompt is class names joined by ". ".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from emblema.core.boxes import Boxes
from emblema.core.errors import BadData
from emblema.encoders.text import TextTower
from emblema.encoders.tower import ImageTower
from emblema.frameworks.two_tower import TwoTower
from emblema.frameworks.vlm import VLM
from emblema.objectives.logit_scale import LogitScale
from emblema.parts.anchors import decoded, square_anchors
from emblema.parts.grounding import GroundingHead, Regions, phrase_scores, phrase_tokens, prompt
from emblema.students.two_stage import suppressed


class Grounder(VLM):
    """A two-tower model that finds what words name. `levels` maps are looked at; anchors are `side` strides wide."""

    image: ImageTower
    text: TextTower

    def __init__(
        self,
        image: ImageTower,
        text: TextTower,
        head: GroundingHead,
        levels: int,
        side: float,
        logit_scale: nn.Module | None = None,
    ):
        super().__init__(image, text, logit_scale)
        self.head, self.levels, self.side = head, levels, side

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The dense features, and their halves: [B, D, h, w] each"""
        maps = [self.image.dense(images).permute(0, 3, 1, 2)]
        while len(maps) < self.levels:
            maps.append(F.max_pool2d(maps[-1], 2, ceil_mode=True))
        return maps

    def anchors(self, maps: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, list[int]]:
        """The anchor of each place [N, 4] in pixels of pictures of this size, and how many a level has."""
        grids = [(m.shape[-2], m.shape[-1]) for m in maps]
        first = size[0] / grids[0][0]
        placed = square_anchors(grids, [first * 2**i for i in range(len(maps))], self.side)
        return placed.to(maps[0].device), [h * w for h, w in grids]

    def ground(self, maps: Sequence[Tensor], prompts: Sequence[str]) -> Regions:
        """Each picture with its own prompt."""
        ids = self.text.tokenize(prompts)
        if ids.cut:
            raise BadData(
                f"{ids.cut} of {len(prompts)} prompts do not fit the context of {self.text.context_length} tokens: "
                "name fewer classes at once"
            )
        tokens = self.text.transform(self.text.embed(ids))
        words = self.text.project(self.text.norm(tokens.x))  # [B, L, D]
        return self.head(maps, words, tokens.real(), self.scale)

    @torch.no_grad()
    def detect(
        self, images: Tensor, labels: Sequence[str], *, floor: float = 0.05, overlap: float = 0.6, most: int = 100
    ) -> list[Boxes]:
        """What of the labels is where in images [B, 3, H, W]: `Boxes` in their pixels, best first.

        A score is the root of (mean probability of the label's tokens x centreness); labels below `floor` are left out.
        """
        maps, size = self.pyramid(images), (images.shape[-2], images.shape[-1])
        anchors, _ = self.anchors(maps, size)
        found: list[list[Boxes]] = [[] for _ in images]
        for start, said, tokens in self.prompts(labels):
            regions = self.ground(maps, [said] * len(images))
            p = phrase_scores(regions.logits.sigmoid(), tokens.to(maps[0].device))  # [B, N, P]
            scores = torch.where(p > floor, p * regions.centre.sigmoid()[..., None], 0.0).sqrt()
            xyxy = clip_boxes_to_image(decoded(regions.offsets.float(), anchors), size)
            for boxes, corners, score in zip(found, xyxy.cpu(), scores.cpu()):
                kept = suppressed(corners, score, overlap, most, floor=0.0)
                assert kept.labels is not None
                boxes.append(Boxes(kept.xyxy, kept.labels + start, kept.scores))
        return [_joined(boxes, most) for boxes in found]

    def prompts(self, labels: Sequence[str]) -> Iterator[tuple[int, str, Tensor]]:
        """(number of its first label, prompt, tokens of its phrases [P, L]): as many labels a prompt as the context
        holds."""
        if self.text.tokenizer is None:
            raise ValueError("this text tower has no tokenizer: load a checkpoint folder, or set tower.tokenizer")
        start = 0
        while start < len(labels):
            stop = len(labels)
            while self.text.tokenize([prompt(labels[start:stop])]).cut and stop > start + 1:
                stop = start + (stop - start + 1) // 2
            said = prompt(labels[start:stop])
            yield start, said, phrase_tokens(self.text.tokenizer, said)
            start = stop


def _joined(parts: Sequence[Boxes], most: int) -> Boxes:
    xyxy, labels, scores = (torch.cat([getattr(b, n) for b in parts]) for n in ("xyxy", "labels", "scores"))
    best = scores.argsort(descending=True, stable=True)[:most]
    return Boxes(xyxy[best], labels[best], scores[best])


@dataclass(frozen=True, kw_only=True)
class Grounders(TwoTower):
    """Shape of a grounder."""

    framework: ClassVar[str] = "grounder"
    scale: str = "glip"
    head_depth: int = 6
    head_heads: int = 8
    levels: int = 2
    side: float = 8.0  # of an anchor, in strides of its level
    fusion: bool = True

    def build(self) -> Grounder:
        """A model with fresh weights. The text tower has no tokenizer yet."""
        image, text = self.image.build(self.dim), self.text.build(self.dim)
        head = GroundingHead(self.dim, self.head_depth, self.head_heads, self.levels, self.fusion)
        return Grounder(image, text, head, self.levels, self.side, LogitScale.preset(self.scale))  # type: ignore[arg-type]
