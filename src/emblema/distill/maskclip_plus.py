"""MaskCLIP+: a segmenter learns the label maps that the teacher's dense features give, then its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from emblema.core.boxes import NOTHING
from emblema.core.card import Card
from emblema.core.errors import BadData
from emblema.distill.base import Segmenting
from emblema.parts.dense import checked_features, places
from emblema.students.segmenter import Segmenter, segmenter, text_scores


@dataclass(kw_only=True)
class MaskCLIPPlus(Segmenting):
    card = Card(
        name="maskclip_plus",
        title="Extract Free Dense Labels from CLIP",
        paper="2112.01071",
        year=2022,
        section="7.2 semantic segmentation",
        equation="L = CE(student(x) . t, argmax_c teacher(x) . t_c)",
        reads="PIXELS",
        claim="without annotations and without a background, mIoU(MaskCLIP+) > mIoU(MaskCLIP) on the same images",
        oracle="pseudo labels are the label maps of the zero-shot segmenter; all pixels annotated: plain cross-entropy",
        deviations=(
            "a small student on the teacher's own convolutions; DeepLab-v2 pre-trained on ImageNet in the paper",
            "the teacher's features are a field: a value path that was never trained for single places can be poor",
            "prompt denoising but no key smoothing",
            "words of `backgrounds` may take pixels out of the loss; the paper's data have a class for each pixel",
        ),
    )
    mode: str = "annotation-free"  # or "zero-shot": ground truth of seen classes, the teacher's word for the rest
    features: str = "local"  # of the teacher: "values" is MaskCLIP's, "local", "plain"
    enlarge: float = 2.0  # the teacher sees pictures of so many times the size it was trained at
    denoise: float = 0.5  # a class whose best pixel is less probable is not in the picture; 0: all may be
    backgrounds: tuple[str, ...] = ()  # words that compete; where they win, the teacher says nothing
    guided: float | None = None  # share of the run after which the student teaches itself; None: 1, zero-shot 0.1
    width: int = 32  # of the student
    body: str = "auto"  # it starts from the "teacher"'s convolutions, where there are some, or from "scratch"

    def build(self, teacher, class_names):
        checked_features(self.features)
        if self.mode not in ("annotation-free", "zero-shot"):
            raise BadData(f'mode {self.mode!r}: choose "annotation-free" or "zero-shot"')
        return Student(segmenter(teacher, self.width, self.body), self.text(teacher, class_names))

    def targets(self, teacher, batch):
        assert batch.images is not None
        names = self._names
        words = [*names, *(w for w in self.backgrounds if w not in names)]
        cosine = places(teacher, batch.images, self.features, self.enlarge) @ self.text(teacher, words).T
        size = (self.image_size // 4, self.image_size // 4)
        cosine = F.interpolate(cosine.permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False)
        return {"labels": pseudo_labels(cosine, float(teacher.scale), len(names), self.denoise)}  # [B, h, w]

    def losses(self, student, batch):
        logits = student(batch.images)  # [B, C, h, w]
        guided = self.guided if self.guided is not None else (0.1 if self.mode == "zero-shot" else 1.0)
        labels = batch.targets["labels"] if batch.progress < guided or guided == 1 else logits.detach().argmax(1)
        if self.mode == "zero-shot":
            true = self.truth(batch, labels.shape[-2:])
            labels = torch.where(true == NOTHING, labels, true)
        if (labels == NOTHING).all():
            return {"pseudo": logits.sum() * 0}
        return {"pseudo": F.cross_entropy(logits, labels.long(), ignore_index=NOTHING)}

    def rate(self, name):
        return 0.1 if ".trunk.trunk." in name else 1.0  # what the teacher learnt moves slowly

    def maps(self, student, images, text):
        return text_scores(student.features(images), text)


class Student(torch.nn.Module):
    """A segmenter with a frozen classifier of text rows [C, D]."""

    text: Tensor

    def __init__(self, features: Segmenter, text: Tensor):
        super().__init__()
        self.features = features
        self.register_buffer("text", text, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] -> [B, C, S/4, S/4]"""
        return text_scores(self.features(images), self.text)


def pseudo_labels(cosine: Tensor, scale: float, classes: int, denoise: float = 0.0) -> Tensor:
    """Cosines [B, C, h, w], words of the background last -> uint8 [B, h, w]: the best of `classes`, or 255."""
    best = (scale * cosine).softmax(1).amax((2, 3))  # [B, C]
    absent = best < denoise
    absent[:, classes:] = False
    absent[absent.all(1)] = False  # where nothing is sure, all may be
    labels = cosine.masked_fill(absent[:, :, None, None], -torch.inf).argmax(1)
    return labels.masked_fill(labels >= classes, NOTHING).to(torch.uint8)
