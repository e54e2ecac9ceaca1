"""A small open-vocabulary Faster R-CNN: it proposes boxes of any class, and gives each a vector to compare with texts.

Torchvision's proposal network, matching and RoIAlign around a body trained from scratch; boxes are refined without
regard to class. Label 0 is the background, class c has label c + 1.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign, batched_nms, clip_boxes_to_image

from emblema.core.boxes import Boxes
from emblema.core.errors import BadData

BODIES = ("tiny", "resnet18", "mobilenet")
NOVEL_ROWS = ("neg_inf", "zero", "absent")


@dataclass
class Sampled:
    """What the student saw of the regions drawn from a training batch."""

    maps: dict[str, Tensor]  # of the pictures
    vectors: Tensor  # [R, D]
    labels: Tensor  # [R] long, 0 is the background
    losses: dict[str, Tensor]  # of proposals and boxes


class TwoStage(nn.Module):
    """`text` [C, D] are the rows of the classifier, never learnt; `seen` [C] are those that may be annotated.

    With `double`, a head of its own gives the vectors that are held against the teacher's (`embed(..., image=True)`).
    """

    text: Tensor
    seen: Tensor

    def __init__(
        self, text: Tensor, seen: Tensor, *, body: str = "tiny", width: int = 64, double: bool = True, most: int = 100
    ):
        super().__init__()
        dim, inner = text.shape[1], 2 * width
        self.register_buffer("text", text, persistent=False)
        self.register_buffer("seen", seen, persistent=False)
        self.body, channels, levels = _body(body, width)
        sizes = ((16, 32, 64),) if levels == 1 else tuple((8 * 2**i,) for i in range(levels))
        anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * levels)
        self.rpn = RegionProposalNetwork(
            anchors,
            RPNHead(channels, anchors.num_anchors_per_location()[0]),
            0.7,  # overlap of a thing
            0.3,  # of the background
            64,  # anchors a picture
            0.5,  # share of things among them
            {"training": 300, "testing": 300},
            {"training": most, "testing": most},
            0.7,
        )
        pool = MultiScaleRoIAlign(["0"] if levels == 1 else [str(i) for i in range(levels)], 5, 2)
        # the rules of matching and sampling: 64 regions a picture, a quarter of them things
        self.rules = RoIHeads(pool, None, None, 0.5, 0.5, 64, 0.25, (10.0, 10.0, 5.0, 5.0), 0.0, 0.5, most)
        self.head, self.project = _head(channels * 25, inner), nn.Linear(inner, dim)
        self.refine = nn.Linear(inner, 4)
        self.image_head = _head(channels * 25, inner) if double else None
        self.image_project = nn.Linear(inner, dim) if double else None
        self.background = nn.Parameter(F.normalize(torch.randn(dim), dim=0))

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 [B, 3, S, S] -> {level: [B, W, s, s]}"""
        found = self.body(images.float() / 127.5 - 1)
        return OrderedDict(found) if isinstance(found, dict) else OrderedDict({"0": found})

    def propose(self, images: Tensor, maps: dict[str, Tensor]) -> list[Tensor]:
        """Boxes that may hold a thing [N, 4], best first."""
        return self.rpn(self._sized(images), maps)[0]

    def embed(self, images: Tensor, maps: dict[str, Tensor], boxes: Sequence[Tensor], image: bool = False) -> Tensor:
        """A vector for each of the boxes of all pictures: [R, D], not normalised."""
        pooled = self._pooled(images, maps, boxes)
        if image and self.image_head is not None:
            return self.image_project(self.image_head(pooled))  # type: ignore[misc]
        return self.project(self.head(pooled))

    def sample(self, images: Tensor, truth: Sequence[Boxes]) -> Sampled:
        """Regions drawn around what is annotated, with the losses that know no classes."""
        if any(boxes.labels is None for boxes in truth):
            raise BadData("boxes without labels: a detector learns from labelled boxes")
        crowdless = [boxes if boxes.crowd is None else boxes.at(~boxes.crowd) for boxes in truth]
        told = [{"boxes": b.xyxy.float(), "labels": b.labels + 1} for b in crowdless]  # type: ignore[operator]
        maps = self.maps(images)
        proposals, first = self.rpn(self._sized(images), maps, told)
        boxes, _, labels, offsets = self.rules.select_training_samples([p.detach() for p in proposals], told)
        label, offset = torch.cat(labels), torch.cat(offsets)  # [R], [R, 4]
        hidden = self.head(self._pooled(images, maps, boxes))
        things = label > 0
        drift = F.smooth_l1_loss(self.refine(hidden)[things], offset[things], beta=1 / 9, reduction="sum")
        losses = {"objectness": first["loss_objectness"], "proposals": first["loss_rpn_box_reg"]}
        return Sampled(maps, self.project(hidden), label, losses | {"boxes": drift / max(len(label), 1)})

    def look(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Of each picture: proposals [N, 4], refined boxes [N, 4], vectors of the text and of the image branch."""
        maps = self.maps(images)
        proposals = self.propose(images, maps)
        counts = [len(p) for p in proposals]
        pooled = self._pooled(images, maps, proposals)
        hidden = self.head(pooled)
        vectors = self.project(hidden)
        others = vectors if self.image_head is None else self.image_project(self.image_head(pooled))  # type: ignore[misc]
        refined = self.rules.box_coder.decode(self.refine(hidden), proposals)[:, 0].split(counts)
        size = (images.shape[-2], images.shape[-1])
        clipped = [clip_boxes_to_image(boxes, size) for boxes in refined]
        return proposals, clipped, list(vectors.split(counts)), list(others.split(counts))

    def found(
        self, images: Tensor, text: Tensor, scale: float, base: Tensor | None = None, share: float | None = None
    ) -> list[Boxes]:
        """Detections of classes with the vectors `text` [C, D]; with `share` both branches vote (see `fused`)."""
        _, boxes, r_text, r_image = self.look(images)
        out = []
        for xyxy, r, other in zip(boxes, r_text, r_image):
            p = class_logits(r, text, self.background, scale).softmax(-1)[:, 1:]  # [N, C]
            if share is not None and base is not None:
                p = fused(p, (scale * F.normalize(other, dim=-1) @ text.T).softmax(-1), base, share)
            out.append(suppressed(xyxy, p))
        return out

    def _pooled(self, images: Tensor, maps: dict[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        sizes = [(images.shape[-2], images.shape[-1])] * len(images)
        return self.rules.box_roi_pool(maps, [b.to(images.device) for b in boxes], sizes).flatten(1)

    @staticmethod
    def _sized(images: Tensor) -> ImageList:
        return ImageList(images, [(images.shape[-2], images.shape[-1])] * len(images))


def class_logits(
    vectors: Tensor, text: Tensor, background: Tensor, scale: float, seen: Tensor | None = None, novel: str = "neg_inf"
) -> Tensor:
    """scale * [cos(r, e_bg), cos(r, t_1) ... cos(r, t_C)]: [R, D] -> [R, 1 + C].

    What a class that is not `seen` says while training: "neg_inf" nothing; "zero" a logit of 0, as in ViLD's code;
    "absent" removes its column, and labels have to be counted without it.
    """
    if novel not in NOVEL_ROWS:
        raise BadData(f"novel rows {novel!r}: choose {', '.join(NOVEL_ROWS)}")
    rows = torch.cat([F.normalize(background, dim=-1)[None], text])
    logits = scale * F.normalize(vectors, dim=-1) @ rows.T
    if seen is None or bool(seen.all()):
        return logits
    kept = torch.cat([seen.new_ones(1), seen])
    if novel == "absent":
        return logits[:, kept]
    return logits.masked_fill(~kept, -torch.inf) if novel == "neg_inf" else logits * kept


def trained(text: Tensor, rows: Tensor) -> Tensor:
    """Which of the classes with the vectors `text` [C, D] are among the rows [C', D] that were trained: bool [C]"""
    return (text @ rows.T).amax(1) > 1 - 1e-5


def fused(p_text: Tensor, p_image: Tensor, base: Tensor, share: float = 2 / 3) -> Tensor:
    """p_text^share p_image^(1 - share) for base classes, the exponents swapped for the others: [R, C]"""
    power = torch.where(base, share, 1 - share)
    return p_text**power * p_image ** (1 - power)


def suppressed(xyxy: Tensor, scores: Tensor, overlap: float = 0.5, most: int = 100, floor: float = -1.0) -> Boxes:
    """Boxes [N, 4] with scores [N, C] as detections: those above `floor`, overlapping ones of a class suppressed, best
    first."""
    row = torch.arange(len(xyxy)).repeat_interleave(scores.shape[1])
    label = torch.arange(scores.shape[1]).repeat(len(xyxy))
    flat = scores.flatten()
    sound = ((xyxy[row, 2:] - xyxy[row, :2]).amin(1) >= 1).logical_and(flat > floor).nonzero()[:, 0]
    row, label, flat = row[sound], label[sound], flat[sound]
    kept = batched_nms(xyxy[row], flat, label, overlap)[:most]
    return Boxes(xyxy[row[kept]], labels=label[kept], scores=flat[kept])


def _head(size: int, inner: int) -> nn.Module:
    return nn.Sequential(nn.Linear(size, inner), nn.ReLU(), nn.Linear(inner, inner), nn.ReLU())


def _body(name: str, width: int) -> tuple[nn.Module, int, int]:
    """A network, its channels and how many levels it gives."""
    from torchvision.models.detection import backbone_utils as made

    if name == "tiny":
        w = width
        parts = [
            _conv(3, w // 2, 2),
            _conv(w // 2, w, 2),
            _conv(w, w, 1),
            _conv(w, w, 2),
            _conv(w, w, 1),
            _conv(w, w, 1),
        ]
        return nn.Sequential(*parts), w, 1
    if name == "resnet18":
        return made.resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5), 256, 5
    if name == "mobilenet":
        body = made.mobilenet_backbone(backbone_name="mobilenet_v3_large", weights=None, fpn=True, trainable_layers=6)
        return body, 256, 3
    raise BadData(f"body {name!r}: choose {', '.join(BODIES)}")


def _conv(a: int, b: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.GroupNorm(8, b), nn.ReLU())
