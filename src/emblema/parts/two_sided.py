"""Prompts in the layers of both towers: independent, coupled from text to image, or united by one small network.

Image prompts carry no position, so their place in the sequence is of no effect: they stand at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from emblema.core.batch import ImageInput
from emblema.core.errors import NoSuchDoor
from emblema.core.tokens import Tokens
from emblema.encoders.block import Block
from emblema.encoders.tower import Tower
from emblema.parts.prompts import Borrowed, PromptedText, deep

if TYPE_CHECKING:
    from emblema.frameworks.vlm import VLM

Prompts = Sequence[Tensor] | Tensor  # one [n, width] a layer


def prompted_layers(depth: int, *towers: Tower) -> int:
    """How many layers get prompts: `depth`, or all of the shallowest tower. Raises `NoSuchDoor` if it has none."""
    for tower in towers:
        if not tower.depth:
            raise NoSuchDoor(
                f"{type(tower).__name__} has no transformer layers, so prompts cannot enter it. Choose a model with a "
                "ViT image tower, or a system that reads pooled features (coop, tip_adapter, ...)."
            )
    return min(depth, *(tower.depth for tower in towers))


def drawn(*shape: int) -> nn.Parameter:
    """Prompts from N(0, 0.02^2)."""
    return nn.Parameter(0.02 * torch.randn(*shape))


class TwoSided(Borrowed):
    """Independent prompts: words [M, d_t], text prompts behind layer 0 [J - 1, M, d_t], image prompts [J, n, d_v].

    `text_depth=1` prompts the words alone. `options` are those of `PromptedText`. `forward` gives the logits of
    embedded images.
    """

    def __init__(
        self,
        vlm: VLM,
        class_names: Sequence[str],
        length: int = 4,
        image_length: int = 4,
        *,
        depth: int = 9,
        text_depth: int | None = None,
        **options,
    ):
        super().__init__(vlm)
        layers = prompted_layers(depth, vlm.image)
        text_layers = prompted_layers(depth if text_depth is None else text_depth, vlm.text)
        self.text = PromptedText(vlm, class_names, length, **options)
        words = self.text.context.shape[-2]
        self.deep_text = drawn(max(text_layers - 1, 0), words, vlm.text.width)
        self.image = drawn(layers, image_length, vlm.image.width)

    def prompts(self) -> tuple[Tensor, Prompts, Prompts]:
        """The words, the text prompts of layers 1, 2, ..., and the image prompts of layers 0, 1, ..."""
        return self.text.context, self.deep_text, self.image

    def encode_text(self) -> Tensor:
        """[C, D] unit"""
        words, behind, _ = self.prompts()
        return self.text(words, deep(behind, 1, start=1) if len(behind) else None)

    def encode_image(self, tokens: Tokens) -> Tensor:
        """[B, D] unit"""
        return self.vlm.encode_image(tokens, deep(self.prompts()[2], None))

    def forward(self, x: ImageInput) -> Tensor:
        return self.vlm.logits(self.encode_image(x.tokens), self.encode_text())  # [B, C]


class Coupled(TwoSided):
    """Image prompts are linear images of the text prompts, layer by layer: v_j = W_j t_j + b_j (MaPLe)."""

    def __init__(self, vlm: VLM, class_names: Sequence[str], length: int = 2, *, depth: int = 9, **options):
        layers = prompted_layers(depth, vlm.image, vlm.text)
        super().__init__(vlm, class_names, length, depth=layers, **options)
        del self.image
        self.couple = nn.ModuleList(nn.Linear(vlm.text.width, vlm.image.width) for _ in range(layers))

    def prompts(self) -> tuple[Tensor, Prompts, Prompts]:
        words = self.text.context
        image = [couple(t) for couple, t in zip(self.couple, [words, *self.deep_text])]
        return words, self.deep_text, image


class United(TwoSided):
    """Words and the image prompts of all layers are one sequence, which one small transformer block reads (UPT).

    `joint` is the block's width; 0 leaves the prompts as they are.
    """

    def __init__(self, vlm: VLM, class_names: Sequence[str], length: int = 4, *args, joint: int = 128, **options):
        super().__init__(vlm, class_names, length, *args, text_depth=1, **options)
        del self.deep_text
        self.joint = joint
        if joint:
            d_t, d_v = vlm.text.width, vlm.image.width
            self.enter = nn.ModuleList([fitted(d_t, joint), fitted(d_v, joint)])
            self.block = Block(joint, 1, activation="quick_gelu")
            self.leave = nn.ModuleList([fitted(joint, d_t), fitted(joint, d_v)])

    def prompts(self) -> tuple[Tensor, Prompts, Prompts]:
        words, image = self.text.context, self.image
        if not self.joint:
            return words, (), image
        (enter_t, enter_v), (leave_t, leave_v) = self.enter, self.leave
        one = torch.cat([enter_t(words), enter_v(image.flatten(0, 1))])[None]  # [1, M + J n, joint]
        t, v = self.block(one)[0].split([len(words), image.shape[:2].numel()])
        return leave_t(t), (), leave_v(v).unflatten(0, image.shape[:2])


def fitted(width: int, other: int) -> nn.Module:
    """A linear map where the widths differ."""
    return nn.Identity() if width == other else nn.Linear(width, other)
