"""ProGrad: learn from labels only what does not contradict the zero-shot answers.

The part of the gradient of cross-entropy that would raise the divergence from zero-shot is taken out of it.
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
        equation="g = g_CE - w <g_CE, n(g_KL)> n(g_KL)  where <g_CE, g_KL> < 0, else g_CE",
        reads=Level.POOLED,
        claim="trained on base classes, ProGrad names novel ones more accurately than CoOp",
        oracle="w = 1: no gradient along g_KL is left; w = 0: CoOp",
    )
    context_length: int = 16
    words: str = ""
    weight: float = 1.0  # w
    temperature: float = 1.0
    optim: Optim = field(default_factory=lambda: coop_recipe(epochs=100.0))

    def build(self, vlm, class_names):
        module = PromptClassifier(vlm, class_names, self.context_length, words=self.words)
        module.register_buffer("hand", self.hand(vlm, class_names), persistent=False)
        return module

    def losses(self, module, batch):
        logits, t = module(batch.x), self.temperature
        teacher = module.vlm.logits(batch.x.pooled, module.hand)
        soft = -((teacher / t).softmax(-1) * (logits / t).log_softmax(-1)).sum(-1).mean()
        return {"cross_entropy": F.cross_entropy(logits, batch.labels), "zero_shot": t**2 * soft}

    def backward(self, module, losses):
        learnt = [p for p in module.parameters() if p.requires_grad]
        general = torch.autograd.grad(losses["zero_shot"], learnt, retain_graph=True)
        special = torch.autograd.grad(losses["cross_entropy"], learnt)
        for p, g_special, g_general in zip(learnt, special, general):
            p.grad = aligned(g_special, g_general, self.weight)


def aligned(special: Tensor, general: Tensor, weight: float) -> Tensor:
    """`special` without its part against `general`."""
    along = (special * general).sum()
    if along >= 0:
        return special
    return special - weight * along / general.pow(2).sum() * general
