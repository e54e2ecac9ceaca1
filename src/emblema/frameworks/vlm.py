"""The vision-language model that every system is handed or makes: two towers and a scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.batch import ImageInput, Level
from emblema.core.tokens import Edit, Tokens
from emblema.encoders.tokenizers import TextIds
from emblema.encoders.tower import Tower
from emblema.objectives.logit_scale import LogitScale

Texts = Sequence[str] | TextIds | Tokens


class VLM(nn.Module):
    """Images and texts as unit vectors of one space.

    Towers may be the same object (one-tower framework). `logit_bias` is SigLIP's; None elsewhere.
    """

    def __init__(
        self,
        image: Tower,
        text: Tower,
        logit_scale: nn.Module | None = None,
        logit_bias: float | None = None,
    ):
        super().__init__()
        if image.dim != text.dim:
            raise ValueError(f"the image tower ends in {image.dim} dimensions, the text tower in {text.dim}")
        self.image, self.text = image, text
        self.dim = image.dim
        self.logit_scale = logit_scale if logit_scale is not None else LogitScale()
        self.logit_bias = None if logit_bias is None else nn.Parameter(self.logit_scale().new_tensor(logit_bias))

    @property
    def scale(self) -> Tensor:
        """The logit scale 1/tau, after its bounds: scalar."""
        return self.logit_scale()

    def encode_image(self, images: Tensor | Tokens, edit: Edit | None = None) -> Tensor:
        """Images [B, 3, H, W] (uint8, or normalised floats) or their tokens -> [B, D] unit, fp32."""
        return unit(self.image.encode(images, edit))

    def encode_text(self, texts: Texts, edit: Edit | None = None) -> Tensor:
        """Texts, ids or tokens -> [N, D] unit, fp32."""
        return unit(self.text.encode(texts, edit))

    def encode_patches(self, images: Tensor | Tokens, edit: Edit | None = None, values: bool = False) -> Tensor:
        """One vector a place of the grid: [B, H, W, D] unit, fp32."""
        return unit(self.image.dense(images, edit, values))

    def encode_local(self, images: Tensor | Tokens, radius: int = 1) -> Tensor:
        """What the tower pools from each place and its neighbours alone: [B, H, W, D] unit, fp32."""
        return unit(self.image.local(images, radius))

    def encode_words(self, texts: Texts, edit: Edit | None = None) -> tuple[Tensor, Tensor]:
        """One vector a token: [N, L, D] unit, fp32, and [N, L] True where the token is not padding."""
        tokens = texts if isinstance(texts, Tokens) else self.text.embed(texts)
        tokens = self.text.transform(tokens, edit)
        norm = getattr(self.text, "norm", nn.Identity())
        return unit(self.text.project(norm(tokens.x))), tokens.real()

    def logits(self, z_image: Tensor, z_text: Tensor) -> Tensor:
        """Scaled cosine of unit vectors: [..., D] x [N, D] -> [..., N]."""
        logits = self.scale * z_image.float() @ z_text.float().transpose(-1, -2)
        return logits if self.logit_bias is None else logits + self.logit_bias

    def read(self, images: Tensor, level: Level, reader: str = "the method") -> ImageInput:
        """Images as deep as `level` allows a method to see them."""
        stages: dict[str, Any] = {}
        if level == Level.PIXELS:
            stages["pixels"] = images
        if level <= Level.EMBEDDED:
            stages["tokens"] = self.image.embed(images)
        if level == Level.PATCHES:
            stages["patches"] = self.encode_patches(images)
        if level >= Level.PATCHES or level == Level.PIXELS:
            z = self.image.encode(images).float()  # [B, D]
            stages |= {"pooled": unit(z), "norm": z.norm(dim=-1)}
        return ImageInput(reads=level, reader=reader, **stages)


def unit(x: Tensor) -> Tensor:
    """x / ||x|| over the last axis, in fp32."""
    return F.normalize(x.float(), dim=-1)


def frozen(vlm: VLM) -> VLM:
    """The model as loaders hand it out: evaluation mode, no parameter asks for a gradient."""
    return vlm.requires_grad_(False).eval()
