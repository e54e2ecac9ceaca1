"""PLOT: several prompts a class, matched with the places of a picture by optimal transport.

Each prompt may take care of another attribute: the plan says which places it is compared with. The plan is solved
without gradient; the prompts learn through the cosines that it weighs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from emblema.core.batch import ImageInput, Level
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.objectives.transport import sinkhorn
from emblema.parts.prompts import Borrowed, PromptedText
from emblema.transfer.base import Transfer, coop_recipe


@dataclass(kw_only=True)
class PLOT(Transfer):
    card = Card(
        name="plot",
        title="PLOT: Prompt Learning with Optimal Transport for Vision-Language Models",
        paper="2210.01253",
        year=2023,
        section="6.3.1 text prompt",
        equation="L = CE(s <T, F G>, y),  T = argmin_T <T, 1 - F G> - eps H(T)",
        reads=Level.PATCHES,
        claim="with few shots, 4 prompts under transport are more accurate than the same 4 averaged",
        oracle="ot.sinkhorn on the same cosines; one prompt: the mean cosine over places",
        deviations=(
            "a fixed number of rounds in place of a stop at a change of 0.01, which comes after 3 to 5: logits move by "
            "less than 0.001",
            "PLOT++ (visual prompts beside the text) is left out",
        ),
    )
    prompts: int = 4  # N
    context_length: int = 16
    epsilon: float = 0.1
    rounds: int = 20
    transport: bool = True  # False: a uniform plan, which averages prompts and places
    optim: Optim = field(default_factory=lambda: coop_recipe())

    def build(self, vlm, class_names):
        return Matched(vlm, class_names, self)

    predict_size = 64


class Matched(Borrowed):
    def __init__(self, vlm, class_names, system: PLOT):
        super().__init__(vlm)
        self.texts = nn.ModuleList(PromptedText(vlm, class_names, system.context_length) for _ in range(system.prompts))
        self.epsilon, self.rounds, self.transport = system.epsilon, system.rounds, system.transport

    def forward(self, x: ImageInput) -> Tensor:
        return self.vlm.scale * self.score(x.patches.flatten(1, 2), torch.stack([text() for text in self.texts]))

    def score(self, places: Tensor, texts: Tensor) -> Tensor:
        """<T, F G> of places [B, S, D] and prompts [N, C, D]: [B, C]."""
        cosine = torch.einsum("bsd,ncd->bcsn", places, texts)  # [B, C, S, N]
        if not self.transport:
            return cosine.mean((2, 3))
        with torch.no_grad():
            plan = sinkhorn(cosine.float(), self.epsilon, self.rounds)
        return (plan * cosine).sum((2, 3))
