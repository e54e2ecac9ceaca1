"""ProGrad: learnt words may not unlearn what zero-shot knows.

Where the gradient of the task points against that of staying near the zero-shot answers, the opposing part is removed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from emblema.core.batch import Level
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.parts.prompts import PromptClassifier
from emblema.transfer.base import Transfer, coop_recipe


@dataclass(kw_only=True)
class ProGrad(Transfer):
    card = Card(
        name="prograd",
        title="Prompt-aligned Gradient for Prompt Tuning",
        paper="2205.14865",
        year=2023,
        section="6.3.1 text prompt",
        equation="g = g_d - lambda min(<g_d, g_g>, 0) g_g / |g_g|^2,  g_d of CE, g_g of T^2 KL(zero-shot || learnt)",
        reads=Level.POOLED,
        claim="on novel classes, ProGrad (lambda 1) is more accurate than lambda 0, which is CoOp",
        oracle="lambda 1: no opposing part is left; lambda 0: CoOp",
        deviations=("the second loss is shown with the first, though it only turns the gradient",),
    )
    context_length: int = 16  # M, when no words are given
    words: str = ""
    weight: float = 1.0  # lambda: the share of the opposing part that is removed
    temperature: float = 1.0  # T
    optim: Optim = field(default_factory=lambda: coop_recipe(epochs=100.0))

    def build(self, vlm, class_names):
        module = PromptClassifier(vlm, class_names, self.context_length, words=self.words)
        module.register_buffer("hand", self.hand(vlm, class_names))  # [C, D]
        return module

    def losses(self, module, batch):
        logits, T = module(batch.x), self.temperature
        teacher = (module.vlm.logits(batch.x.pooled, module.hand) / T).softmax(-1)  # [B, C]
        general = -(teacher * (logits / T).log_softmax(-1)).sum(-1).mean() * T**2
        return {"cross_entropy": F.cross_entropy(logits, batch.labels), "general": general}

    def backward(self, module, losses):
        learnt = [p for p in module.parameters() if p.requires_grad]
        task = torch.autograd.grad(losses["cross_entropy"].float(), learnt, retain_graph=True)
        general = torch.autograd.grad(losses["general"].float(), learnt)
        for parameter, g_d, g_g in zip(learnt, task, general):
            parameter.grad = aligned(g_d, g_g, self.weight)


def aligned(g_d: Tensor, g_g: Tensor, share: float = 1.0) -> Tensor:
    """`g_d` without `share` of its part against `g_g`; unchanged where the two agree."""
    against = (g_d * g_g).sum().clamp(max=0)
    return g_d - share * against / g_g.square().sum().clamp(min=1e-30) * g_g
