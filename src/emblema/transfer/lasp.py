"""LASP: learnt prompts must be told apart among hand-written ones, as text among text.

For each template the hand-written texts of all classes are prototypes, and the learnt text of a class is classified
among them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.batch import ImageInput, Level
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.data.templates import templates_for
from emblema.frameworks.vlm import unit
from emblema.parts.prompts import Borrowed, PromptedText, hand_written
from emblema.transfer.base import Transfer, coop_recipe


@dataclass(kw_only=True)
class LASP(Transfer):
    card = Card(
        name="lasp",
        title="LASP: Text-to-Text Optimization for Language-Aware Soft Prompting of Vision & Language Models",
        paper="2210.01115",
        year=2023,
        section="6.3.1 text prompt",
        equation="L = CE(s z . n(t_c + w), y) + l mean_g CE(s n(t_c + w) . H_g, c)",
        reads=Level.POOLED,
        claim="trained on base classes, the text loss names novel ones more accurately",
        oracle="l = 0 and w kept at 0: CoOp; a learnt prompt that is template g: CE of s H_g H_g' against the diagonal",
        deviations=(
            "the image tower is frozen; the released settings also tune its norms at a tenth of the rate",
            "the text loss uses the names that training may see; officially novel names too",
            "one group of prompts, as released; the paper has several",
        ),
    )
    words: str = "a photo of a"
    weight: float = 5.0  # l
    noise: float = 0.05  # on hand-written features, at every other step
    recalibrate: bool = True  # learn w
    optim: Optim = field(default_factory=lambda: coop_recipe(lr=0.008, clip_norm=1.0, epochs=25.0))

    def build(self, vlm, class_names):
        templates = dict.fromkeys([*self.wording, *templates_for("imagenet-best")])
        hand = torch.stack([hand_written(vlm, class_names, (t,)) for t in templates])
        return Recalibrated(vlm, class_names, self.words, hand, self.recalibrate)

    def losses(self, module, batch):
        texts = module.texts()  # [C, D]
        hand = module.hand
        if torch.rand((), generator=batch.generator) < 0.5:
            hand = hand + self.noise * torch.randn(hand.shape, generator=batch.generator)
        logits = module.vlm.scale * torch.einsum("cd,gkd->gck", texts, hand)  # [G, C, C]
        own = torch.arange(len(texts)).expand(len(hand), -1)
        image = F.cross_entropy(module.vlm.logits(batch.x.pooled, texts), batch.labels)
        return {"cross_entropy": image, "text": self.weight * F.cross_entropy(logits.flatten(0, 1), own.flatten())}


class Recalibrated(Borrowed):
    hand: Tensor  # H [G, C, D]

    def __init__(self, vlm, class_names, words: str, hand: Tensor, recalibrate: bool):
        super().__init__(vlm)
        self.prompt = PromptedText(vlm, class_names, words=words)
        self.correction = nn.Parameter(torch.zeros(vlm.dim), requires_grad=recalibrate)  # w
        self.register_buffer("hand", hand, persistent=False)

    def texts(self) -> Tensor:
        raw = self.vlm.text.encode(self.prompt.tokens(self.prompt.context)).float()
        return unit(raw + self.correction)

    def forward(self, x: ImageInput) -> Tensor:
        return self.vlm.logits(x.pooled, self.texts())
