"""ZegCLIP: class texts made of the picture look for their places among the teacher's patches.

The teacher stays as it is but for prompts before each of its layers. Multiplying a text with the picture's own vector
keeps the decoder from fitting the texts of the seen classes only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from emblema.core.boxes import NOTHING
from emblema.core.card import Card
from emblema.core.errors import BadData, NoSuchDoor
from emblema.distill.base import Segmenting
from emblema.encoders.block import CrossAttention
from emblema.frameworks.vlm import unit
from emblema.parts.dense import enlarged
from emblema.parts.prompts import Borrowed, deep


@dataclass(kw_only=True)
class ZegCLIP(Segmenting):
    card = Card(
        name="zegclip",
        title="ZegCLIP: Towards Adapting CLIP for Zero-shot Semantic Segmentation",
        paper="2212.03588",
        year=2023,
        section="7.2 semantic segmentation",
        equation="L = 100 focal(m) + dice(m),  m_c = sigmoid(q_c . k),  q_c = W [t_c * g, t_c]",
        reads="PIXELS",
        needs=("masks",),
        claim="mIoU of unseen classes: with the relationship descriptor > with the texts alone",
        oracle="torchvision's focal loss, dice by hand; a class's map does not depend on which others are asked for",
        deviations=(
            "AdamW at 1e-3 for all that is learnt; 2e-5, with the head at ten times that, in the code",
            "the grid of a small teacher is coarse: the teacher sees enlarged pictures, no windows",
        ),
    )
    prompts: int = 10  # before each layer of the teacher
    layers: int = 3  # of the decoder; the last one gives the maps
    heads: int = 4
    descriptor: bool = True  # False: the queries are the texts alone
    focal: float = 100.0  # 20 in the paper
    dice: float = 1.0
    nothing_is_negative: bool = True  # as in the code: pixels of no seen class are negatives of all; False: left out
    offset: float = 0.1  # taken from the probability of seen classes; 0: transductive
    floor: float = 0.5  # places where no class is more probable show none
    enlarge: float = 2.0  # the teacher sees pictures of so many times the size it was trained at

    def build(self, teacher, class_names):
        seen = self.seen(class_names)
        if not seen.any():
            raise BadData("all classes are novel: nothing can be learnt from their label maps")
        text = self.text(teacher, [name for name, s in zip(class_names, seen) if s])
        return Student(teacher, text, seen, self.prompts, self.layers, self.heads, self.descriptor, self.enlarge)

    def losses(self, student, batch):
        size = (self.image_size // 4, self.image_size // 4)
        logits = F.interpolate(student(batch.images, student.text), size, mode="bilinear", align_corners=False)
        masks, known = one_hot(self.truth(batch, size), student.labels)  # [B, C, h, w], [B, 1, h, w]
        focal = sigmoid_focal_loss(logits, masks, alpha=0.25, gamma=2.0)
        if not self.nothing_is_negative:
            focal = focal * known
        return {"focal": self.focal * focal.mean(), "dice": self.dice * dice(logits, masks)}

    def maps(self, student, images, text):
        p = student(images, text).sigmoid()
        seen = (text @ student.text.T).amax(1) > 0.999  # [C]
        p = p - self.offset * seen.to(p)[None, :, None, None]
        return torch.cat([p, torch.full_like(p[:, :1], self.floor)], 1)


class Student(Borrowed):
    """Prompts of the teacher's image tower, the relationship descriptor and the decoder."""

    text: Tensor
    labels: Tensor

    def __init__(
        self, vlm, text: Tensor, seen: Tensor, prompts: int, layers: int, heads: int, descriptor: bool, enlarge
    ):
        super().__init__(vlm)
        tower, dim = vlm.image, vlm.dim
        if not tower.depth:
            raise NoSuchDoor("zegclip puts prompts before the layers of an image transformer; this teacher has none")
        self.enlarge = enlarge
        self.prompts = nn.Parameter(torch.randn(tower.depth, prompts, tower.width) * 0.02)
        self.describe = nn.Linear(2 * dim, dim) if descriptor else None
        self.layers = nn.ModuleList(Layer(dim, heads) for _ in range(layers - 1))
        self.last = CrossAttention(dim, heads)
        self.last.out = nn.Identity()  # type: ignore[assignment]  # its maps are wanted, not what it reads
        self.register_buffer("text", text, persistent=False)
        self.register_buffer("labels", seen.nonzero()[:, 0], persistent=False)  # of the data, in the order of `text`

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] and [C, D] -> logits of masks [B, C, h, w]"""
        tower: Any = self.vlm.image
        with torch.no_grad():
            tokens = tower.embed_alone(tower.normalise(enlarged(self.vlm, images, self.enlarge)))
        tokens = tower.transform(tokens, deep(self.prompts, tokens.first_patch))
        g = unit(tower.project(tower.pool(tokens)))  # [B, D]
        patches = unit(tower.project(tower.norm(tokens.patches())))  # [B, hw, D]
        return self.decode(text, g, patches).unflatten(-1, tokens.grid)

    def decode(self, text: Tensor, g: Tensor, patches: Tensor) -> Tensor:
        """Texts [C, D], pictures [B, D], their patches [B, hw, D] -> [B, C, hw]. Classes never see one another."""
        q = text.expand(len(g), -1, -1)  # [B, C, D]
        if self.describe is not None:
            q = self.describe(torch.cat([q * g[:, None], q], -1))
        for layer in self.layers:
            q = layer(q, patches)
        q, k = self.last.split(self.last.q(q)), self.last.split(self.last.kv(patches).chunk(2, -1)[0])
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).mean(1)


class Layer(nn.Module):
    """Classes read patches; there is no attention among classes."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.attention = CrossAttention(dim, heads)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, q: Tensor, patches: Tensor) -> Tensor:
        q = self.norm1(q + self.attention(q, patches))
        return self.norm2(q + self.mlp(q))


def one_hot(labels: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Label maps [B, h, w] and C class numbers -> masks [B, C, h, w], and where there is a label [B, 1, h, w]."""
    masks = labels[:, None] == classes[None, :, None, None]
    return masks.float(), (labels != NOTHING)[:, None].float()


def dice(logits: Tensor, masks: Tensor) -> Tensor:
    """1 - (2 |p y| + 1) / (|p| + |y| + 1), mean over the classes that each picture shows."""
    p, y = logits.sigmoid().flatten(2), masks.flatten(2)  # [B, C, hw]
    loss = 1 - (2 * (p * y).sum(-1) + 1) / (p.sum(-1) + y.sum(-1) + 1)
    there = y.amax(-1)  # [B, C]
    return (loss * there).sum() / there.sum().clamp(min=1)
