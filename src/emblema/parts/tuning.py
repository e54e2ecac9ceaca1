"""Learning weights of the towers themselves: small updates to a copy, or the whole image tower with a head.

The `VLM` handed in is copied first. The copy stays in evaluation mode, so the statistics of batch norms are the
pre-trained ones.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from emblema.core.batch import ImageInput
from emblema.core.errors import NoSuchDoor
from emblema.encoders.block import Block
from emblema.encoders.tower import Tower
from emblema.frameworks.vlm import unit
from emblema.parts.prompts import Borrowed, clean, embedded, encode_classes, hand_written

if TYPE_CHECKING:
    from emblema.frameworks.vlm import VLM


class Updated(Borrowed):
    """A copy of the VLM in which some weights W are read as update(W). Only the updates are parameters and are saved.

    The sentence around the class names stays as written: `hand` are its vectors before any update.
    """

    hand: Tensor  # [C, D]

    def __init__(self, vlm: VLM, class_names: Sequence[str], template: str):
        super().__init__(copy.deepcopy(vlm))
        self.register_buffer("hand", hand_written(vlm, class_names, [template]), persistent=False)
        self.words = embedded(vlm, [template.replace("{}", clean(name)) for name in class_names])
        self.updates = nn.ModuleDict()

    def update(self, name: str, change: nn.Module) -> None:
        """Let the weight called `name` ("image.blocks.0.norm1.bias") be read through `change`."""
        path, _, leaf = name.rpartition(".")
        parametrize.register_parametrization(self.vlm.get_submodule(path), leaf, change)
        self.updates[name.replace(".", "/")] = change

    def encode_text(self) -> Tensor:
        """[C, D] unit"""
        return encode_classes(self.vlm, self.words)

    def forward(self, x: ImageInput) -> Tensor:
        return self.vlm.logits(self.vlm.encode_image(x.tokens), self.encode_text())  # [B, C]


class Shift(nn.Module):
    """W + D, D learnt from 0."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.by = nn.Parameter(torch.zeros_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.by


class LowRank(nn.Module):
    """W + (alpha / r) B A for some of the stacked square matrices of W [n d, d]; A [r, d] is drawn, B [d, r] is 0."""

    def __init__(self, weight: Tensor, stacked: Sequence[int], rank: int, alpha: float):
        super().__init__()
        width = weight.shape[1]
        self.scale = alpha / rank
        self.register_buffer("stacked", torch.tensor(stacked), persistent=False)
        self.down = nn.Parameter(torch.empty(len(stacked), rank, width).uniform_(-(width**-0.5), width**-0.5))  # A
        self.up = nn.Parameter(torch.zeros(len(stacked), width, rank))  # B

    def forward(self, weight: Tensor) -> Tensor:
        square = weight.unflatten(0, (-1, weight.shape[1]))  # [n, d, d]
        update = self.scale * (self.up @ self.down)
        return square.index_add(0, self.stacked, update.to(weight.dtype)).flatten(0, 1)  # type: ignore[arg-type]


def tunable_blocks(tower: Tower) -> list[Block]:
    """The transformer layers of a tower. Raises `NoSuchDoor` where there are none."""
    blocks: list[Any] = list(getattr(tower, "blocks", ()))
    if not blocks:
        raise NoSuchDoor(
            f"{type(tower).__name__} has no transformer layers whose weights could be updated. Choose a model with a "
            "ViT image tower, or fine_tune, which tunes any tower."
        )
    return blocks


class FineTuned(Borrowed):
    """An image tower and a classifier, which begins as the scaled text vectors: logits = n(f(x)) . w_c.

    `tower=False` learns the classifier alone, on pooled features.
    """

    start: Tensor  # [C, D]
    tower: Any

    def __init__(self, vlm: VLM, hand: Tensor, tower: bool = True):
        super().__init__(vlm)
        self.register_buffer("start", vlm.scale.detach() * hand, persistent=False)
        self.head = nn.Parameter(self.start.clone())
        self.tower = copy.deepcopy(vlm.image).requires_grad_(True) if tower else None

    def train(self, mode: bool = True):
        super().train(mode)
        if self.tower is not None:
            self.tower.eval()
        return self

    def forward(self, x: ImageInput) -> Tensor:
        z = x.pooled if self.tower is None else unit(self.tower.encode(x.pixels))
        return z @ self.head.T  # [B, C]
