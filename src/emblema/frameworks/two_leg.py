"""Two legs: two towers that also meet in fusion layers (FLAVA, ALBEF, CoCa, FIBER).

`encode_image` and `encode_text` are those of the two towers: the fusion layers take no part in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from emblema.core.tokens import Tokens
from emblema.encoders.tower import Tower
from emblema.frameworks.two_tower import TwoTower
from emblema.frameworks.vlm import VLM, Texts
from emblema.objectives.logit_scale import LogitScale
from emblema.parts.fusion import FusionEncoder, Joint


class TwoLeg(VLM):
    """A two-tower model with a fusion encoder beside it."""

    def __init__(
        self,
        image: Tower,
        text: Tower,
        fusion: FusionEncoder,
        logit_scale: nn.Module | None = None,
        logit_bias: float | None = None,
    ):
        super().__init__(image, text, logit_scale, logit_bias)
        self.fusion = fusion

    def fuse(self, image_tokens: Tokens, text_tokens: Tokens) -> Joint:
        """Transformed tokens of pairs -> [CLS_m; image; text], each token informed by all."""
        return self.fusion(image_tokens, text_tokens)

    def encode_pair(self, images: Tensor | Tokens, texts: Texts) -> Joint:
        """Images and their texts through both legs and the fusion."""
        image = images if isinstance(images, Tokens) else self.image.embed(images)
        text = texts if isinstance(texts, Tokens) else self.text.embed(texts)
        return self.fuse(self.image.transform(image), self.text.transform(text))


@dataclass(frozen=True, kw_only=True)
class TwoLegs(TwoTower):
    """Shape of a two-leg model."""

    framework: ClassVar[str] = "two-leg"
    fusion_width: int = 512
    fusion_depth: int = 4
    fusion_heads: int = 8

    def build(self) -> TwoLeg:
        """A model with fresh weights. The text tower has no tokenizer yet."""
        image, text = self.image.build(self.dim), self.text.build(self.dim)
        fusion = FusionEncoder(image.width, text.width, self.fusion_width, self.fusion_depth, self.fusion_heads)
        return TwoLeg(image, text, fusion, LogitScale.preset(self.scale), self.logit_bias)
