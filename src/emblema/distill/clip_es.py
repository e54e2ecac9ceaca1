"""CLIP-ES: maps of the gradient of a softmax over an image's classes and backgrounds, spread by attention.

Nothing is trained. The softmax makes classes compete with what often stands beside them; attention between patches
carries the map over the rest of the thing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from emblema.core.card import Card
from emblema.core.errors import NoSuchDoor
from emblema.distill.base import Segmenting, rgb
from emblema.frameworks.vlm import VLM, unit
from emblema.parts.components import boxed
from emblema.parts.dense import enlarged
from emblema.parts.prompts import Borrowed


@dataclass(kw_only=True)
class CLIPES(Segmenting):
    card = Card(
        name="clip_es",
        title="CLIP is Also an Efficient Segmenter: A Text-Driven Approach for Weakly Supervised Semantic Segmentation",
        paper="2212.09506",
        year=2023,
        section="7.2 semantic segmentation",
        equation="M_c = T ReLU(sum_k w_k A_k),  w_k = mean_p d softmax(s f . t)_c / dA_kp",
        reads="PIXELS",
        needs=("no pictures",),
        claim="with the image's labels given, mIoU with class-aware attention > mIoU of the same maps without",
        oracle="the closed form of the softmax's gradient; no rounds and no attention: Softmax-GradCAM",
        deviations=(
            "the maps only: neither dense CRF nor the DeepLab that the paper trains on them",
            "attention of the last 2 blocks is averaged, of 8 in the paper: small teachers have few",
            "prompts of the data set in place of 'a clean origami {}.' and its synonyms (a field)",
            "the gradient of the softmax's logarithm: the same map after min-max, and it cannot underflow",
        ),
    )
    enlarge: float = 2.0  # the teacher sees pictures of so many times the size it was trained at
    softmax: bool = True  # False: GradCAM of the class's own score
    refine: bool = True  # spread the maps by attention
    layers: int = 2  # whose attention is averaged, the last ones
    rounds: int = 3  # of normalising columns, then rows
    box: float = 0.4  # of a map's maximum: boxes around what is above it keep the attention
    backgrounds: tuple[str, ...] = (
        *("ground", "land", "grass", "tree", "building", "wall", "sky", "lake", "water", "river", "sea", "railway"),
        *("railroad", "keyboard", "helmet", "cloud", "house", "mountain", "ocean", "road", "rock", "street", "valley"),
        *("bridge", "sign"),
    )

    def build(self, teacher, class_names):
        return Borrowed(teacher)

    def maps(self, student, images, text):
        words = self.text(student.vlm, self.backgrounds)
        words = words[(words @ text.T).amax(1) < 0.999]  # a label is no background
        found, attention = grad_cam(student.vlm, enlarged(student.vlm, images, self.enlarge), text, words, self.softmax,
                                    self.layers)  # fmt: skip
        if self.refine:
            found = spread(found, affinity(attention, self.rounds), self.box)
        best = found.amax(1, keepdim=True)
        return torch.cat([found, (1 - best) ** 2], 1)  # [B, C + 1, h, w]

    def predict(self, data):
        """Maps of the classes that each picture is known to show (`labels`), zero for others: [C + 1, h, w] each."""
        self.module_  # noqa: B018
        out = []
        for record in (data[i] for i in range(len(data))):
            shown = list(record.labels) or list(range(len(data.class_names)))
            (some,) = self.segment([rgb(record)], [data.class_names[c] for c in shown])
            whole = some.new_zeros(len(data.class_names) + 1, *some.shape[1:])
            whole[[*shown, len(data.class_names)]] = some
            out.append(whole)
        return out

    scores = predict


def grad_cam(
    vlm: VLM, images: Tensor, text: Tensor, backgrounds: Tensor, softmax: bool = True, layers: int = 2
) -> tuple[Tensor, Tensor]:
    """Maps of classes `text` [C, D] among `backgrounds` [G, D], each stretched to 0..1: [B, C, h, w]; and the attention
    of patches to patches, mean over heads and the last layers: [B, hw, hw]. The feature is the mean of the patches."""
    tower: Any = vlm.image
    if not hasattr(tower, "attention_weights"):
        raise NoSuchDoor("clip_es reads the attention of an image transformer; this teacher has none. Use a ViT.")
    with torch.no_grad():
        tokens, weights, last = tower.enter(tower.embed(images)), [], tower.depth - 1
        for i in range(tower.depth):
            if i > last - layers:
                weights.append(tower.attention_weights(i, tokens).mean(1))
            tokens = tower.layer(i, tokens) if i < last else tower.before(i, tokens)
    first, (h, w), block = tokens.first_patch, tokens.grid, tower.blocks[last]
    patches = slice(first, first + h * w)
    maps = []
    with torch.enable_grad():
        a = block.norm1(tokens.x).detach().requires_grad_()  # [B, L, width]
        after = tokens.with_x(block.reading(tokens.x, a))
        f = unit(tower.project(tower.norm(after.patches()).mean(1)))  # [B, D]
        z = vlm.scale.detach() * f @ torch.cat([text, backgrounds]).T  # [B, C + G]
        score = z.log_softmax(-1) if softmax else z
        for c in range(len(text)):
            (gradient,) = torch.autograd.grad(score[:, c].sum(), a, retain_graph=True)
            weight = gradient[:, patches].mean(1)  # [B, width]
            maps.append(torch.einsum("bpk,bk->bp", a.detach()[:, patches], weight).relu())
    cam = stretched(torch.stack(maps, 1).unflatten(-1, (h, w)))
    return cam, torch.stack(weights).mean(0)[:, patches, patches]


def affinity(attention: Tensor, rounds: int = 3) -> Tensor:
    """[B, N, N]: columns and rows normalised in turn, made symmetric, squared."""
    t = attention
    for _ in range(rounds):
        t = t / t.sum(1, keepdim=True)
        t = t / t.sum(2, keepdim=True)
    t = (t + t.transpose(1, 2)) / 2
    return t @ t


def spread(cam: Tensor, t: Tensor, box: float = 0.4) -> Tensor:
    """Maps [B, C, h, w] through the affinity [B, N, N], whose columns count inside the boxes of each map only."""
    high = cam > box * cam.amax((2, 3), keepdim=True)
    inside = torch.stack([torch.stack([boxed(mask) for mask in row]) for row in high.cpu()]).to(cam)
    return stretched(torch.einsum("bpq,bcq->bcp", t, (inside * cam).flatten(2)).view_as(cam))


def stretched(maps: Tensor) -> Tensor:
    """Each map [..., h, w] to 0..1."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return F.relu(maps - low) / (high - low).clamp(min=1e-12)
