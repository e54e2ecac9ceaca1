"""Late interaction in place of one vector: how a model that was trained token by token (FILIP) is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emblema.core.batch import Level
from emblema.core.errors import BadData
from emblema.data.templates import fill
from emblema.objectives.late_interaction import late_interaction
from emblema.tasks.base import Predictor

CHUNK = 512  # texts compared at a time


@torch.inference_mode()
def token_scores(model: Any, data: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(s_image [N, M], s_text [N, M]) of all pictures and texts, see `late_interaction`."""
    if isinstance(model, Predictor):
        raise BadData("a fitted system has one vector a class: token-wise similarity is for vision-language models")
    patches = model.features(data, Level.PATCHES).flatten(1, 2).to(model.device)  # [N, P, D]
    parts = []
    for start in range(0, len(texts), CHUNK):
        words, real = model.vlm.encode_words(list(texts[start : start + CHUNK]))
        parts.append(late_interaction(patches, words, real))
    s_image, s_text = (torch.cat(s, 1).cpu() for s in zip(*parts))
    return s_image, s_text


@dataclass
class TokenWise:
    """Zero-shot classification by tokens. The *scores* of a class's templates are averaged, not their vectors."""

    model: Any
    templates: Sequence[str]

    def scores(self, data: Any) -> Tensor:
        """Scaled similarities [N, C] on the CPU."""
        texts = [fill(t, name) for name in data.class_names for t in self.templates]
        s_image, _ = token_scores(self.model, data, texts)
        mean = s_image.unflatten(1, (len(data.class_names), len(self.templates))).mean(2)
        return self.model.vlm.scale.detach().cpu() * mean


def score_ranks(to_text: Tensor, to_image: Tensor, pairs: Tensor, tie: float) -> tuple[Tensor, Tensor]:
    """`retrieval.ranks` from scores: [N, M] of each picture's texts, [M, N] of each text's pictures."""
    right = torch.zeros(to_text.shape, dtype=torch.bool)
    right[pairs[:, 0], pairs[:, 1]] = True
    return _ranks(to_text, right, tie), _ranks(to_image, right.T, tie)


def _ranks(scores: Tensor, right: Tensor, tie: float) -> Tensor:
    best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True) - tie
    wrong = ((scores >= best) & ~right).sum(1)
    return torch.where(right.any(1), wrong + 1, 0)
