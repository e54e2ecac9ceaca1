"""UPL: prompts learnt without labels, from the pictures that zero-shot is surest of.

For each class the k most confident pictures take it as their pseudo-label; several learnt prompts are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.batch import ImageInput, Level
from emblema.core.card import Card
from emblema.core.errors import BadData
from emblema.core.method import Optim
from emblema.engine.inputs import Inputs
from emblema.parts.prompts import Borrowed, PromptedText
from emblema.transfer.base import Transfer, coop_recipe


@dataclass(kw_only=True)
class UPL(Transfer):
    card = Card(
        name="upl",
        title="Unsupervised Prompt Learning for Vision-Language Models",
        paper="2204.03649",
        year=2022,
        section="6.3.1 text prompt",
        equation="L = CE(s z . t(V, name_c), y'),  y' of the k surest pictures of each predicted class",
        reads=Level.POOLED,
        needs=("unlabelled",),
        claim="without labels, UPL's accuracy beats zero-shot",
        oracle="the selection against numpy; true labels and all pictures: CoOp",
        deviations=(
            "members of the ensemble see the same batches and differ in their start; officially 16 runs differ in both",
            "pseudo-labels come from this model alone (UPL* averages several)",
        ),
    )
    top: int = 16  # k
    context_length: int = 16
    members: int = 4  # of the ensemble; officially 16
    random: bool = False  # any k pictures of each predicted class, to compare with
    optim: Optim = field(default_factory=lambda: coop_recipe())

    def build(self, vlm, class_names):
        return Ensemble(vlm, class_names, self.members, self.context_length)

    def check(self, train: Inputs):
        if not len(train):
            raise BadData("no pictures: upl learns from pictures without labels, but it needs some")

    def learn(self, module, train: Inputs, on_step=None):
        hand = self.hand(module.vlm, train.class_names)
        sure = module.vlm.logits(train.arrays["pooled"][0], hand).softmax(-1)  # [N, C]
        rows = surest(sure, self.top, self.random)
        super().learn(module, train.with_labels(sure.argmax(-1)).subset(rows), on_step)

    def losses(self, module, batch):
        logits = module.each(batch.x)  # [E, B, C]; each member's gradient is its own
        terms = [F.cross_entropy(one, batch.labels) for one in logits]
        return {"cross_entropy": torch.stack(terms).sum()}


class Ensemble(Borrowed):
    def __init__(self, vlm, class_names, members: int, length: int):
        super().__init__(vlm)
        self.members = nn.ModuleList(PromptedText(vlm, class_names, length) for _ in range(members))

    def each(self, x: ImageInput) -> Tensor:
        return torch.stack([self.vlm.logits(x.pooled, member()) for member in self.members])

    def forward(self, x: ImageInput) -> Tensor:
        return self.each(x).softmax(-1).mean(0).clamp(min=1e-12).log()  # [B, C]


def surest(probabilities: Tensor, k: int, random: bool = False) -> Tensor:
    """The rows [N, C] of the k most confident pictures of each predicted class (or of any k), in order."""
    confidence, label = probabilities.max(-1)
    if random:
        confidence = torch.rand(confidence.shape, generator=torch.Generator().manual_seed(0))
    rows = []
    for c in label.unique().tolist():
        mine = (label == c).nonzero()[:, 0]
        rows.append(mine[confidence[mine].argsort(descending=True, stable=True)[:k]])
    return torch.cat(rows).sort().values
