"""GLIP: detection as grounding; a region is held against each word of a prompt that names the classes.

Phrases take the place of classes, so what is learnt about words serves words that were never annotated. In the head,
places and words read one another before they are compared (deep fusion).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from emblema.core.batch import Batch, Dataset, Record
from emblema.core.boxes import Boxes
from emblema.core.card import Card
from emblema.core.errors import BadData, NoSuchDoor
from emblema.core.gather import gather, world_size
from emblema.core.method import Optim
from emblema.core.preprocess import Preprocess
from emblema.data.captioned import Captioned
from emblema.data.pictures import geometry, load_image, open_picture
from emblema.encoders.text import TextConfig
from emblema.encoders.vit import ViTConfig
from emblema.engine.loader import CANVAS_MODE
from emblema.frameworks.grounder import Grounders
from emblema.objectives.alignment import region_word
from emblema.parts.anchors import answers_for, centreness, decoded, middle
from emblema.parts.grounding import phrase_tokens, prompt
from emblema.pretrain.base import Learnt, Pretrain


@dataclass(kw_only=True)
class GLIP(Pretrain):
    card = Card(
        name="glip",
        title="Grounded Language-Image Pre-training",
        paper="2112.03857",
        year=2022,
        section="5.3 alignment",
        equation="L = focal(O W'^T / exp(g) + b_l + b_0, T) / positives + 2 L_GIoU + L_centre  (Eq. 11)",
        framework="grounder",
        needs=("boxes",),
        objectives=("alignment",),
        claim="phrases that need an attribute, its thing there in another colour: AP50 of deep fusion > of late fusion",
        oracle="torchvision.ops.sigmoid_focal_loss / positives; generalized_box_iou_loss; assignment by a slow loop",
        deviations=(
            "the towers are trained from scratch: a ViT with its map halved (Swin, FPN), a text transformer (BERT)",
            "a layer of the head is a convolution of the map (DyHead); anchors are 4 strides wide (8), on 2 levels (5)",
            "all parts learn at one rate, without an average of weights (text tower at a tenth, EMA .999 in the code)",
            "boxes with class names only: there is no parser of captions and no teacher that marks web pictures",
            "how many other classes a prompt names is drawn evenly from 1 to `negatives`",
            "pictures are small squares, padded, of one size; half of them mirrored",
        ),
    )
    fusion: bool = True  # False: late fusion, as GLIP-T (A)
    depth: int = 3  # layers of the head
    levels: int = 2
    side: float = 4.0  # of an anchor, in strides of its level
    image_size: int = 128  # pixels
    context: int = 256  # tokens of a prompt
    negatives: int = 85  # classes at most that a prompt names besides those of its picture
    alpha: float = 0.25
    gamma: float = 2.0
    weight_box: float = 2.0
    optim: Optim = field(default_factory=lambda: Optim(lr=1e-3, weight_decay=1e-4, batch_size=32))

    def config(self) -> Any:
        shape = super().config()
        if not isinstance(shape.image, ViTConfig) or not isinstance(shape.text, TextConfig):
            raise NoSuchDoor(f"glip reads the map of a ViT and a prompt's words: {self.arch} has other towers")
        return Grounders(
            image=replace(shape.image, image_size=self.image_size),
            text=replace(shape.text, causal=False, context_length=self.context),
            dim=shape.dim,
            head_depth=self.depth,
            head_heads=max(shape.dim // 32, 1),
            levels=self.levels,
            side=self.side,
            fusion=self.fusion,
        )

    # -- data -----------------------------------------------------------------------------------------------------

    def prepare(self, data: Dataset) -> Dataset:
        """The same pictures; texts say the classes that they show, the first two all, for a vocabulary to be learnt."""
        tried = range(0, len(data), max(len(data) // 20, 1))
        if not any(data[i].boxes is not None for i in tried):
            raise BadData(f"{data.card.name} has no boxes, glip learns from boxes with class names: take emblem-scenes")
        novel = set(data.novel_classes() if hasattr(data, "novel_classes") else ())  # type: ignore[attr-defined]
        self._names = {number: name for number, name in enumerate(data.class_names) if name not in novel}
        if not self._names:
            raise BadData(f"{data.card.name} names no class that may be trained on")

        def change(record: Record, at: int) -> Record:
            shown = [] if record.boxes is None or record.boxes.labels is None else record.boxes.labels.tolist()
            said = [name for number, name in self._names.items() if at < 2 or number in shown]
            texts = tuple(t for t in (record.text, *record.texts) if t is not None)
            return replace(record, text=prompt(said) or None, texts=texts)

        return Captioned(data, change)

    def loading(self) -> dict[str, Any]:
        return {"make_batch": self.collate}

    def collate(self, records: list[Record], generator: torch.Generator) -> Batch:
        """Pictures, each with a prompt of its own classes and others, shuffled; labels of boxes number its phrases."""
        images, prompts, boxes = zip(*(self._row(record, generator) for record in records))
        keys = [record.key for record in records]
        return Batch(keys=keys, images=torch.stack(images), texts=list(prompts), boxes=list(boxes), generator=generator)

    def _row(self, record: Record, generator: torch.Generator) -> tuple[Tensor, str, Boxes]:
        picture: Any = open_picture(record.image)  # type: ignore[arg-type]
        wanted = Preprocess(size=self.image_size, mode=CANVAS_MODE)
        image, boxes = load_image(picture, wanted), record.boxes or Boxes(torch.empty(0, 4), torch.empty(0).long())
        if boxes.labels is None:
            raise BadData(f"{record.key}: boxes without labels; glip learns which words name a box")
        known = torch.tensor([label in self._names for label in boxes.labels.tolist()], dtype=torch.bool)
        boxes = boxes.at(known if boxes.crowd is None else known & ~boxes.crowd)
        boxes, _ = boxes.visible(picture.width, picture.height)
        assert boxes.labels is not None

        there = sorted(set(boxes.labels.tolist()))
        others = [number for number in self._names if number not in there]
        most = min(self.negatives, len(others))
        drawn = torch.randperm(len(others), generator=generator).tolist()
        count = 1 + int(torch.randint(most, (), generator=generator)) if most else 0
        chosen = [*there, *(others[i] for i in drawn[:count])] or others[:1]
        chosen = [chosen[i] for i in torch.randperm(len(chosen), generator=generator).tolist()]
        labels = torch.tensor([chosen.index(label) for label in boxes.labels.tolist()], dtype=torch.long)

        w, h, left, top = geometry(picture.width, picture.height, wanted.size, wanted.mode)
        grown = torch.tensor([w / picture.width, h / picture.height] * 2)
        xyxy = boxes.xyxy.float() * grown - torch.tensor([left, top] * 2)
        if torch.rand((), generator=generator) < 0.5:
            image = image.flip(-1)
            xyxy = torch.stack([wanted.size - xyxy[:, 2], xyxy[:, 1], wanted.size - xyxy[:, 0], xyxy[:, 3]], 1)
        return image, prompt([self._names[number] for number in chosen]), Boxes(xyxy, labels)

    # -- loss -----------------------------------------------------------------------------------------------------

    def losses(self, module: Learnt, batch: Batch) -> dict[str, Tensor]:
        vlm = module["vlm"]
        if batch.images is None or batch.texts is None or batch.boxes is None:
            raise BadData("glip learns from pictures with a prompt and boxes whose labels number its phrases")
        maps = vlm.pyramid(batch.images)
        regions = vlm.ground(maps, batch.texts)
        anchors, counts = vlm.anchors(maps, batch.images.shape[-2:])
        device, (B, N, L) = anchors.device, regions.logits.shape

        thing = torch.full((B, N), -1, device=device)
        truth = torch.zeros(B, N, 4, device=device)
        T = torch.zeros(B, N, L, dtype=torch.bool, device=device)  # positive to all tokens of the region's phrase
        for b, (text, boxes) in enumerate(zip(batch.texts, batch.boxes)):
            thing[b] = answers_for(anchors, counts, boxes.xyxy.to(device))
            own = thing[b] >= 0
            if own.any():
                tokens = phrase_tokens(vlm.text.tokenizer, text)[boxes.labels].to(device)  # [M, L']
                T[b, own, : tokens.shape[1]] = tokens[thing[b, own]]
                truth[b, own] = boxes.xyxy.to(device)[thing[b, own]]

        own = thing >= 0  # [B, N]
        words = region_word(regions.logits, T, regions.real, alpha=self.alpha, gamma=self.gamma, normaliser="sum")
        centred = centreness(middle(anchors).expand(B, N, 2)[own], truth[own])  # [P]
        predicted = decoded(regions.offsets.float(), anchors)[own]  # [P, 4]
        giou = generalized_box_iou_loss(predicted, truth[own], reduction="none")
        centre = F.binary_cross_entropy_with_logits(regions.centre.float()[own], centred, reduction="sum")
        positives, inside = over_all(own.sum()).clamp(min=1), over_all(centred.sum()).clamp(min=1e-6)
        return {
            "words": words / positives,
            "boxes": self.weight_box * (giou * centred).sum() / inside,
            "centre": centre / positives,
        }


def over_all(count: Tensor) -> Tensor:
    """The mean over the processes: with it in place of each one's own count, a joint batch is one batch."""
    return gather(count[None].float()).sum() / world_size()
