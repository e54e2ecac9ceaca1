"""Two towers whose last layers read each other where asked to (FIBER): fusion in the backbone.

`encode_image` and `encode_text` run the towers alone, so images and texts are indexed apart; `encode_pair` runs the
last layers in step, each changing what its attention says by what it reads of the other's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from emblema.core.errors import NoSuchDoor
from emblema.core.tokens import Tokens
from emblema.encoders.tower import Transformer
from emblema.frameworks.two_tower import TwoTower
from emblema.frameworks.vlm import VLM, Texts
from emblema.objectives.logit_scale import LogitScale
from emblema.parts.fusion import GatedReading


class Fused(VLM):
    """A two-tower model whose last layers may hear the other tower, and a head that says whether a pair belongs
    together."""

    image: Transformer
    text: Transformer

    def __init__(
        self,
        image: Transformer,
        text: Transformer,
        readings: tuple[nn.ModuleList, nn.ModuleList],
        logit_scale: nn.Module | None = None,
        logit_bias: float | None = None,
    ):
        super().__init__(image, text, logit_scale, logit_bias)
        self.of_text, self.of_image = readings  # what image layers read, what text layers read
        joint = image.width
        self.image_pooler = nn.Sequential(nn.Linear(image.width, joint), nn.Tanh())
        self.text_pooler = nn.Sequential(nn.Linear(text.width, joint), nn.Tanh())
        self.matching = nn.Linear(2 * joint, 2)

    def encode_pair(self, images: Tensor | Tokens, texts: Texts) -> tuple[Tokens, Tokens]:
        """Images and their texts through both towers -> transformed tokens, each informed by the other."""
        image = self.image.enter(images if isinstance(images, Tokens) else self.image.embed(images))
        text = self.text.enter(texts if isinstance(texts, Tokens) else self.text.embed(texts))
        if len(image) != len(text):
            raise ValueError(f"{len(image)} images cannot be fused with {len(text)} texts: they are read in pairs")
        alone_image, alone_text = self.image.depth - len(self.of_text), self.text.depth - len(self.of_image)
        for i in range(alone_image):
            image = self.image.layer(i, image)
        for i in range(alone_text):
            text = self.text.layer(i, text)
        for i, (of_text, of_image) in enumerate(zip(self.of_text, self.of_image)):
            hear_text = partial(of_text, other=text.x, real=text.real())
            hear_image = partial(of_image, other=image.x)  # both read what entered the layer
            image = self.image.layer(alone_image + i, image, hear_text)
            text = self.text.layer(alone_text + i, text, hear_image)
        return image, text

    def match(self, images: Tensor | Tokens, texts: Texts) -> Tensor:
        """Does the text belong to the image? Logits [N, 2] of N pairs; column 1 says yes."""
        image, text = self.encode_pair(images, texts)
        pooled = [self.image_pooler(self.image.pool(image)), self.text_pooler(self.text.pool(text))]
        return self.matching(torch.cat(pooled, -1))


@dataclass(frozen=True, kw_only=True)
class FusedTowers(TwoTower):
    """Shape of a model with fusion in its backbone: transformers, the last `fused_layers` of which run in step."""

    framework: ClassVar[str] = "fused"
    fused_layers: int = 6

    def build(self) -> Fused:
        """A model with fresh weights. The text tower has no tokenizer yet."""
        image: Any = self.image.build(self.dim)
        text: Any = self.text.build(self.dim)
        if not isinstance(image, Transformer) or not isinstance(text, Transformer):
            raise NoSuchDoor("fusion in the backbone runs layers in step: choose an architecture with two transformers")
        if not 1 <= self.fused_layers <= min(image.depth, text.depth):
            raise ValueError(
                f"fused_layers={self.fused_layers}: the towers have {image.depth} and {text.depth} layers, so from 1 "
                f"to {min(image.depth, text.depth)} can be fused"
            )
        sides: list[tuple[Any, Any]] = [(image, text), (text, image)]
        of_text, of_image = (
            nn.ModuleList(GatedReading(own.width, own.config.heads, other.width) for _ in range(self.fused_layers))
            for own, other in sides
        )
        return Fused(image, text, (of_text, of_image), LogitScale.preset(self.scale), self.logit_bias)
