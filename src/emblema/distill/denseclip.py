"""DenseCLIP: a segmenter on CLIP's own image tower, to which the scores of class texts at each place are a hint.

The texts stand in learnt words and are then told what this picture shows (a decoder over its vectors, added with a
small weight). Their scores join the tower's maps and are themselves trained as a segmentation. Labels are label maps.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.boxes import NOTHING
from emblema.core.card import Card
from emblema.core.errors import ClosedClasses, NoSuchDoor
from emblema.core.method import Optim
from emblema.distill.base import Segmenting, student_recipe
from emblema.encoders.vit import ViT
from emblema.parts.decoder import ContextDecoder
from emblema.parts.dense import enlarged
from emblema.parts.prompts import Borrowed, PromptedText
from emblema.students.pyramid import Pyramid


@dataclass(kw_only=True)
class DenseCLIP(Segmenting):
    card = Card(
        name="denseclip",
        title="DenseCLIP: Language-Guided Dense Prediction with Context-Aware Prompting",
        paper="2112.01518",
        year=2022,
        section="6.3.1 text prompt",
        equation="s = n(v) . n(t + gamma Dec(t, [g; v])),  L = CE(FPN(x, s), y) + CE(s / 0.07, y),  t = T(V, name)",
        reads="PIXELS",
        needs=("masks",),
        closed=True,
        claim="mIoU of annotated classes: with texts and their scores > the same pyramid without them (texts=False)",
        oracle="gamma = 0: scores of texts at places; torch.nn.TransformerDecoderLayer; the auxiliary loss by hand",
        deviations=(
            "an image transformer gives all four scales; the paper's main results are of CLIP's ResNets",
            "the pyramid ends in one convolution; Semantic FPN with 256 channels in the paper",
            "AdamW at 0.001, a tenth for the tower, and a cosine; 0.0001, a tenth and a polynomial in the code",
            "no dropout in the decoder; batch norms of the tower keep their statistics",
        ),
    )
    texts: bool = True  # False: the tower and the pyramid alone
    context_length: int = 8  # learnt words
    context_std: float = 1.0  # they are drawn with
    decoder_width: int = 256
    decoder_depth: int = 3
    gamma: float = 1e-4  # what the picture says of the texts counts so much at first
    temperature: float = 0.07  # of the auxiliary loss
    enlarge: float = 1.0  # the tower sees pictures of so many times the size it was trained at
    width: int = 64  # of the pyramid
    optim: Optim = field(default_factory=lambda: student_recipe(clip_norm=1.0))

    def build(self, teacher, class_names):
        if not isinstance(teacher.image, ViT):
            raise NoSuchDoor(f"denseclip takes maps of a ViT's layers: this model has a {type(teacher.image).__name__}")
        return Student(teacher, class_names, self)

    def losses(self, student, batch):
        logits, scores = student(batch.images)
        terms = {"cross_entropy": cross_entropy(logits, self.truth(batch, logits.shape[-2:]))}
        if scores is not None:
            labels = self.truth(batch, scores.shape[-2:])
            terms["scores"] = cross_entropy(scores / self.temperature, labels)
        return terms

    def rate(self, name):
        return 0.1 if name.startswith("tower.") else 1.0

    def segment(self, images: Sequence[Any], labels: Sequence[str]):
        """[C, h, w] of each RGB picture. Raises `ClosedClasses` for a class that was not among the training data's."""
        unknown = [name for name in labels if name not in self.class_names_]
        if unknown:
            known = ", ".join(self.class_names_)
            raise ClosedClasses(f"denseclip learnt the classes {known}; it cannot name {', '.join(unknown)}")
        chosen = [self.class_names_.index(name) for name in labels]
        for maps in super().segment(images, self.class_names_):
            yield maps[chosen]

    def maps(self, student, images, text):
        return student(images)[0]


class Student(Borrowed):
    """A copy of the image tower, a pyramid on its layers, and texts that the tower's vectors are compared with."""

    def __init__(self, teacher: Any, class_names: Sequence[str], system: DenseCLIP):
        super().__init__(teacher)
        self.enlarge = system.enlarge
        self.tower: Any = copy.deepcopy(teacher.image).requires_grad_(True)
        self.tower.conse = None  # what stands beside the layers speaks of whole pictures
        width, depth, dim = self.tower.width, self.tower.depth, teacher.dim
        self.taps = [max(depth * k // 4 - 1, 0) for k in (1, 2, 3, 4)]
        self.pyramid = Pyramid(width, system.width, len(class_names), len(class_names) if system.texts else 0)
        self.prompt = self.decoder = self.gamma = None
        if system.texts:
            self.prompt = PromptedText(teacher, class_names, system.context_length)
            nn.init.trunc_normal_(self.prompt.context, std=system.context_std)
            self.decoder = ContextDecoder(dim, system.decoder_width, system.decoder_depth)
            self.gamma = nn.Parameter(torch.full((dim,), system.gamma))

    def train(self, mode: bool = True):
        super().train(mode)
        self.tower.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 [B, 3, S, S] -> logits [B, C, 4 h, 4 w], and scores of the texts at the tower's places [B, C, h, w]."""
        tower = self.tower
        tokens = tower.enter(tower.embed_alone(tower.normalise(enlarged(self.vlm, images, self.enlarge))))
        maps = []
        for i in range(tower.depth):
            tokens = tower.layer(i, tokens)
            maps += [tokens.patches().transpose(1, 2).unflatten(2, tokens.grid)] * self.taps.count(i)  # [B, W, h, w]
        if self.prompt is None or self.decoder is None:
            return self.pyramid(maps).float(), None
        g = tower.project(tower.pool(tokens))  # [B, D]
        v = tower.project(tower.norm(tokens.patches()))  # [B, h w, D]
        t = self.prompt.raw().expand(len(v), -1, -1)  # [B, C, D]
        t = t + self.gamma * self.decoder(t, torch.cat([g[:, None], v], 1))
        scores = F.normalize(v.float(), dim=-1) @ F.normalize(t.float(), dim=-1).transpose(1, 2)  # [B, h w, C]
        scores = scores.transpose(1, 2).unflatten(2, tokens.grid)
        return self.pyramid(maps, scores).float(), scores


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the places that have a class; 0 where none has: [B, C, h, w], [B, h, w] -> []"""
    if (labels == NOTHING).all():
        return logits.sum() * 0
    return F.cross_entropy(logits, labels, ignore_index=NOTHING)
