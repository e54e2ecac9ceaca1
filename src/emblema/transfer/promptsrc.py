"""PromptSRC: prompts in both towers that are held near the frozen model, and averaged over the epochs.

Prompted features and logits may not stray far from the frozen ones; the final prompts are a Gaussian-weighted mean of
those after each epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from emblema.core.batch import Level
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.engine.inputs import Inputs
from emblema.parts.two_sided import TwoSided
from emblema.transfer.base import Transfer, coop_recipe


@dataclass(kw_only=True)
class PromptSRC(Transfer):
    card = Card(
        name="promptsrc",
        title="Self-regulating Prompts: Foundational Model Adaptation without Forgetting",
        paper="2307.06948",
        year=2023,
        section="6.3.1 text-visual prompt",
        equation="L = CE + 10 |z - z_0| + 25 |t - t_0| + KL(p_0 || p); theta = sum_e w_e theta_e, w = Gaussian",
        reads=Level.EMBEDDED,
        claim="PromptSRC's accuracy on novel classes beats that of the same prompts without its three regularisers",
        oracle="weights 0 and no averaging: independent prompts; each term and the mean over epochs written out",
        deviations=(
            "trained on stored views (the evaluation view by default), not on fresh crops",
            "t_0 averages the data set's own templates; officially 60 of ImageNet's",
            "KL is divided by B C as in the code; the paper gives the plain divergence",
        ),
    )
    words: str = "a photo of a"
    image_length: int = 4
    depth: int = 9
    image_weight: float = 10.0
    text_weight: float = 25.0
    logit_weight: float = 1.0
    centre: float = 0.75  # of the Gaussian over epochs, as a share of them (15 of 20); 0: no averaging
    spread: float = 1.0  # its standard deviation in epochs
    optim: Optim = field(default_factory=lambda: coop_recipe(lr=2.5e-3, batch_size=4, epochs=20.0))

    def build(self, vlm, class_names):
        module = TwoSided(vlm, class_names, image_length=self.image_length, depth=self.depth, words=self.words)
        module.register_buffer("hand", self.hand(vlm, class_names), persistent=False)
        return module

    def losses(self, module: Any, batch: Any):
        z, t, z_0, t_0 = module.encode_image(batch.x.tokens), module.encode_text(), batch.x.pooled, module.hand
        logits, frozen = module.vlm.logits(z, t), module.vlm.logits(z_0, t_0)
        return {
            "cross_entropy": F.cross_entropy(logits, batch.labels),
            "image": self.image_weight * (z - z_0).abs().mean(),
            "text": self.text_weight * (t - t_0).abs().mean(),
            "logits": self.logit_weight * divergence(frozen, logits),
        }

    def learn(self, module, train: Inputs, on_step=None):
        total, per_epoch = train.total_steps(self.optim), train.epoch_steps(self.optim.batch_size)
        weights = gaussian(-(-total // per_epoch), self.centre, self.spread)
        learnt = [p for p in module.parameters() if p.requires_grad]
        mean = [torch.zeros_like(p) for p in learnt]

        def count(step):
            if step.number % per_epoch == 0 or step.number == total:
                for sum_, p in zip(mean, learnt):
                    sum_ += weights[(step.number - 1) // per_epoch] * p.detach()
            if on_step is not None:
                on_step(step)

        super().learn(module, train, count)
        with torch.no_grad():
            for sum_, p in zip(mean, learnt):
                p.copy_(sum_)


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) of two [B, C] logits, over B C."""
    p, q = teacher.log_softmax(-1), student.log_softmax(-1)
    return (p.exp() * (p - q)).mean()


def gaussian(epochs: int, centre: float, spread: float) -> Tensor:
    """Weights of epochs 1..E that sum to 1, highest at `centre` * E; the last alone where `centre` is 0: [E]."""
    e = torch.arange(1, epochs + 1)
    if not centre:
        return (e == epochs).float()
    return (-((e - centre * epochs) ** 2) / (2 * spread**2)).softmax(0)
