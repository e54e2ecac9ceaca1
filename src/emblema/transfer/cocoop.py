"""CoCoOp: the learnt words are shifted by what the picture shows, so that they suit classes they were not learnt on.

A small network maps each picture's feature to one vector that is added to every context vector.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
        equation="L = CE(s z_i . t(V_1 + pi(z_i) .. V_M + pi(z_i), name_c), y),  pi a network of two layers",
        reads=Level.POOLED,
        claim="on novel classes, CoCoOp is more accurate than CoOp learnt on the same base classes",
        oracle="pi = 0: CoOp, before and after training; a batch of two equals two batches of one",
        deviations=(
            "batches of 4 pictures, officially 1 for want of memory: the loss of a batch is that of its pictures alone",
        ),
    )
    context_length: int = 4  # M, when no words are given
    words: str = "a photo of a"
    reduction: int = 16  # the network is D -> D / 16 -> text width
    optim: Optim = field(default_factory=lambda: coop_recipe(batch_size=4, epochs=10.0))

    def build(self, vlm, class_names):
        return Conditioned(vlm, class_names, self)

    predict_size = 32


class Conditioned(Borrowed):
    """Logits of pictures against class names whose prompt each picture has shifted."""

    def __init__(self, vlm, class_names, system: CoCoOp):
        super().__init__(vlm)
        self.prompt = PromptedText(vlm, class_names, system.context_length, words=system.words)
        hidden = max(vlm.dim // system.reduction, 1)
        self.shift = nn.Sequential(nn.Linear(vlm.dim, hidden), nn.ReLU(), nn.Linear(hidden, vlm.text.width))

    def forward(self, x: ImageInput) -> Tensor:
        contexts = self.prompt.context + self.shift(x.pooled)[:, None]  # [B, M, d]
        texts = self.prompt.of_images(contexts)  # [B, C, D]
        return self.vlm.logits(x.pooled[:, None], texts)[:, 0]  # [B, C]
