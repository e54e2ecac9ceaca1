"""LSeg: each pixel's vector is compared with the teacher's class texts, so the classes can be changed afterwards.

The teacher gives texts only, none of its image features. What is learnt over the score maps treats all labels alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.boxes import NOTHING
from emblema.core.card import Card
from emblema.core.errors import BadData
from emblema.distill.base import Segmenting
from emblema.students.segmenter import Segmenter, segmenter, text_scores

SCALE = 1 / 0.07  # a constant in the code, not the teacher's


@dataclass(kw_only=True)
class LSeg(Segmenting):
    card = Card(
        name="lseg",
        title="Language-driven Semantic Segmentation",
        paper="2201.03546",
        year=2022,
        section="7.2 semantic segmentation",
        equation="L = CE(cos(student(x), t) / 0.07, y)",
        reads="PIXELS",
        needs=("masks",),
        claim="IoU of classes not seen: class texts > random class vectors in the same network",
        oracle="cosines / 0.07 by hand; labels in another order give the same maps in that order",
        deviations=(
            "a small student on the teacher's own convolutions; DPT pre-trained on ImageNet in the paper",
            "AdamW and a cosine; SGD and a polynomial schedule in the code",
            "with `others` all classes compete with it at once; the paper's episodes have one class and 'others' each",
        ),
    )
    others: str = ""  # a text for pixels of no class, e.g. "others"; empty: they are left out
    blocks: int = 1  # of spatial regularisation, over the score maps
    kind: str = "bottleneck"  # of these blocks: the best label's score is added to each; or "depthwise"
    width: int = 32  # of the student
    body: str = "auto"  # it starts from the "teacher"'s convolutions, where there are some, or from "scratch"

    def build(self, teacher, class_names):
        if self.kind not in ("bottleneck", "depthwise"):
            raise BadData(f'kind {self.kind!r}: choose "bottleneck" or "depthwise"')
        seen = self.seen(class_names)
        if not seen.any():
            raise BadData("all classes are novel: nothing can be learnt from their label maps")
        text = self.text(teacher, [name for name, s in zip(class_names, seen) if s])
        others = self.text(teacher, [self.others]) if self.others else text[:0]
        features = segmenter(teacher, self.width, self.body)
        return Student(features, text, others, numbers(seen, bool(self.others)), self.blocks, self.kind)

    def losses(self, student, batch):
        logits = student(batch.images, student.text)  # [B, C, h, w]
        labels = student.number[self.truth(batch, logits.shape[-2:])]
        if (labels == NOTHING).all():
            return {"cross_entropy": logits.sum() * 0}
        return {"cross_entropy": F.cross_entropy(logits, labels, ignore_index=NOTHING)}

    def rate(self, name):
        return 0.1 if ".trunk.trunk." in name else 1.0  # what the teacher learnt moves slowly

    def maps(self, student, images, text):
        return student(images, text)


def numbers(seen: Tensor, others: bool) -> Tensor:
    """Label of the data -> row of the seen classes' texts; others have the row behind them, or 255: long [256]"""
    number = torch.full((256,), int(seen.sum()) if others else NOTHING)
    number[: len(seen)][seen] = torch.arange(int(seen.sum()))
    return number


class Student(nn.Module):
    """A segmenter, cosines with texts, and blocks over the score maps."""

    text: Tensor
    others: Tensor
    number: Tensor

    def __init__(self, features: Segmenter, text: Tensor, others: Tensor, number: Tensor, blocks: int, kind: str):
        super().__init__()
        self.features = features
        self.blocks = nn.ModuleList(Regular(kind == "bottleneck", last=i == blocks - 1) for i in range(blocks))
        for name, value in (("text", text), ("others", others), ("number", number)):
            self.register_buffer(name, value, persistent=False)

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] and [C, D] -> [B, C, S/4, S/4]; with a text for the others [B, C + 1, S/4, S/4]"""
        scores = text_scores(self.features(images), torch.cat([text, self.others]), SCALE)
        for block in self.blocks:
            scores = block(scores)
        return scores


class Regular(nn.Module):
    """One 3x3 filter for the maps of all labels. It begins as the identity."""

    def __init__(self, bottleneck: bool, last: bool):
        super().__init__()
        self.bottleneck, self.last = bottleneck, last
        self.filter = nn.Conv2d(1, 1, 3, padding=1)
        nn.init.dirac_(self.filter.weight)
        nn.init.zeros_(self.filter.bias)  # type: ignore[arg-type]

    def forward(self, scores: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]"""
        out = self.filter(scores.flatten(0, 1)[:, None])[:, 0].view_as(scores)
        if self.bottleneck:
            out = out + scores.amax(1, keepdim=True)
        return out if self.last else F.leaky_relu(out)
