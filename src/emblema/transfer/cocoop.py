"""CoCoOp: the prompt depends on the picture, so that it does not only fit the classes it was trained on.

A small network turns the image feature into a shift of the context vectors; every picture then has its own class texts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from emblema.core.batch import ImageInput, Level
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.parts.prompts import Borrowed, PromptedText
from emblema.transfer.base import Transfer, coop_recipe


@dataclass(kw_only=True)
class CoCoOp(Transfer):
    card = Card(
        name="cocoop",
        title="Conditional Prompt Learning for Vision-Language Models",
        paper="2203.05557",
        year=2022,
        section="6.3.1 text prompt",
        equation="L = CE(s z_i . t(V + h(z_i), name_c), y)",
        reads=Level.POOLED,
        claim="trained on base classes, CoCoOp names novel ones more accurately than CoOp",
        oracle="last layer of h at zero: CoOp; a batch of two is two batches of one",
    )
    words: str = "a photo of a"
    reduction: int = 16
    optim: Optim = field(default_factory=lambda: coop_recipe(batch_size=1, epochs=10.0))

    def build(self, vlm, class_names):
        return Conditional(vlm, class_names, self.words, self.reduction)

    predict_size = 32


class Conditional(Borrowed):
    def __init__(self, vlm, class_names, words: str, reduction: int):
        super().__init__(vlm)
        self.prompt = PromptedText(vlm, class_names, words=words)
        narrow = max(vlm.dim // reduction, 1)
        self.meta = nn.Sequential(nn.Linear(vlm.dim, narrow), nn.ReLU(), nn.Linear(narrow, vlm.text.width))  # h

    def forward(self, x: ImageInput) -> Tensor:
        contexts = self.prompt.context + self.meta(x.pooled)[:, None]  # [B, M, d]
        texts = self.prompt.of_images(contexts)  # [B, C, D]
        return self.vlm.scale * torch.einsum("bd,bcd->bc", x.pooled, texts)
