"""MaskCLIP: a class for each place of a picture, from a frozen model; nothing is trained.

The last attention is replaced by its value path, so that each place says what it shows itself; class texts are the
classifier. A picture's own logits are those of its best place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emblema.core.batch import ImageInput, Level
from emblema.core.card import Card
from emblema.core.errors import BadData
from emblema.engine.dense import ZeroShotSegmenter
from emblema.parts.prompts import Borrowed
from emblema.transfer.base import Transfer


@dataclass(kw_only=True)
class MaskCLIP(Transfer):
    card = Card(
        name="maskclip",
        title="Extract Free Dense Labels from CLIP",
        paper="2112.01071",
        year=2022,
        section="6.3.3 other",
        equation="label_p = argmax_c n(v_p) . t_c,  v = value path of the last block, its residuals kept",
        reads=Level.PATCHES,
        needs=("values", "no pictures"),
        protocol="zero-shot-segmentation",
        claim="mIoU of MaskCLIP is higher than that of the patch tokens of the unmodified last block",
        oracle="attention forced to the diagonal gives the value path; denoise 0: the zero-shot segmenter by values",
        deviations=(
            "key smoothing, off in the official configurations, is left out",
            "the paper segments; logits of whole pictures (their best place) are ours",
        ),
    )
    denoise: float = 0.0  # a class whose best place is less probable is not in the picture (0.5 in the paper's variant)
    enlarge: float = 2.0  # `segment` sees pictures of so many times the size the tower was trained at

    def build(self, vlm, class_names):
        if not 0 <= self.denoise < 1:
            raise BadData(f"denoise {self.denoise} is a probability below 1: 0 keeps every class, the paper's is 0.5")
        return Places(vlm, self.hand(vlm, class_names))

    def segment(self, images: Sequence[Any], labels: Sequence[str]) -> Iterator[Tensor]:
        """Cosines of RGB pictures' places with any class names: [C, H, W] each, at the picture's size."""
        self.module_  # noqa: B018
        dense = ZeroShotSegmenter(features="values", enlarge=self.enlarge)
        scale = float(self._model.vlm.scale)
        for cosine in dense.segment(self._model, images, labels, self.wording):
            yield denoised(cosine, scale, self.denoise)


class Places(Borrowed):
    """The best place's logit for each class."""

    hand: Tensor  # [C, D]

    def __init__(self, vlm, hand: Tensor):
        super().__init__(vlm)
        self.register_buffer("hand", hand)

    def forward(self, x: ImageInput) -> Tensor:
        return self.vlm.logits(x.values.flatten(1, 2), self.hand).amax(1)  # [B, S, C] -> [B, C]


def denoised(cosine: Tensor, scale: float, threshold: float) -> Tensor:
    """[C, H, W] with the classes at -1 everywhere whose best place has a probability below the threshold.

    Where that would leave none, all stay.
    """
    absent = (scale * cosine).softmax(0).amax((1, 2)) < threshold  # [C]
    if absent.all():
        return cosine
    return torch.where(absent[:, None, None], -torch.ones_like(cosine), cosine)
