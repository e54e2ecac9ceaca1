"""Classifiers that are made of words alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emblema.core.batch import ImageInput
from emblema.parts.prompts import CHUNK, Borrowed

if TYPE_CHECKING:
    from emblema.frameworks.vlm import VLM


class Named(Borrowed):
    """Logits against one fixed vector a class, [C, D], of any length."""

    weight: Tensor

    def __init__(self, vlm: VLM, weight: Tensor):
        super().__init__(vlm)
        self.register_buffer("weight", weight)

    def forward(self, x: ImageInput) -> Tensor:
        return self.vlm.logits(x.pooled, self.weight)


@torch.no_grad()
def mean_of_texts(vlm: VLM, texts: list[list[str]]) -> Tensor:
    """The mean of each class's unit vectors, not normalised again: [C, D]."""
    flat = [text for each in texts for text in each]
    z = torch.cat([vlm.encode_text(flat[i : i + CHUNK]) for i in range(0, len(flat), CHUNK)])
    return torch.stack([part.mean(0) for part in z.split([len(each) for each in texts])])
