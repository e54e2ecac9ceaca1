"""TPT: at test time, one step on the prompt makes the answers to random crops of a single picture agree.

Of many crops the surest are kept, the entropy of their mean answer is lowered, and the picture is then classified. Each
picture begins anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from emblema.core.batch import Level
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.engine import seed
from emblema.parts.prompts import PromptClassifier
from emblema.parts.views import Views
from emblema.transfer.base import Transfer

CROPS = Views(scale=(0.08, 1.0), jitter=0.0, background=False)


@dataclass(kw_only=True)
class TPT(Transfer):
    card = Card(
        name="tpt",
        title="Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models",
        paper="2209.07511",
        year=2022,
        section="6.3.1 text prompt",
        equation="V <- V - lr sign-like AdamW step on H(mean of p(x_v) over the surest tenth of the views)",
        reads=Level.PIXELS,
        needs=("no pictures",),
        claim="on shifted pictures, TPT's accuracy beats zero-shot with the same words",
        oracle="no rate: the untuned prompt; one view: plain entropy; the step against torch.optim.AdamW",
        deviations=(
            "no AugMix (the official code mixes on fine-grained sets only)",
            "crops are drawn from the picture as the model sees it, not from the original",
        ),
    )
    words: str = "a photo of a"
    crops: int = 64  # views, the picture itself among them
    share: float = 0.1  # of the views that are kept
    steps: int = 1
    optim: Optim = field(default_factory=lambda: Optim(lr=5e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01))

    def build(self, vlm, class_names):
        return PromptClassifier(vlm, class_names, words=self.words)

    def logits(self, module, batch):
        return torch.stack([self.adapted(module, x, key) for x, key in zip(batch.x.pixels, batch.keys)])

    @torch.enable_grad()
    def adapted(self, module, pixels: Tensor, key: str) -> Tensor:
        """Logits [C] of one picture uint8 [3, S, S]; `module` is left as it was."""
        vlm, z = module.vlm, self.view_features(pixels, key)  # [V, D]
        context = module.prompt.context.detach().clone().requires_grad_()
        optimiser = torch.optim.AdamW(
            [context], self.optim.lr, self.optim.betas, self.optim.eps, self.optim.weight_decay
        )
        kept = None
        for _ in range(self.steps):
            log_p = vlm.logits(z, module.prompt(context)).log_softmax(-1)  # [V, C]
            if kept is None:
                kept = entropy(log_p).argsort()[: max(int(len(z) * self.share), 1)]
            optimiser.zero_grad()
            entropy_of_mean(log_p[kept]).backward()
            optimiser.step()
        with torch.no_grad():
            return vlm.logits(z[:1], module.prompt(context))[0]

    def view_features(self, pixels: Tensor, key: str) -> Tensor:
        """The picture itself, then random crops of it: [V, D] unit."""
        size, views = pixels.shape[-1], self.crops - 1
        generator = seed.generator(self.seed, "test views", key)
        drawn = CROPS(pixels.expand(views, -1, -1, -1), size, generator) if views else pixels[:0]
        return self._model.encoder.encode(torch.cat([pixels[None], drawn.reshape(-1, *pixels.shape)]))["pooled"].clone()


def entropy(log_p: Tensor) -> Tensor:
    """[V, C] -> [V]"""
    return -(log_p.exp() * log_p).sum(-1)


def entropy_of_mean(log_p: Tensor) -> Tensor:
    """Entropy of the mean distribution of [V, C]."""
    mean = log_p.logsumexp(0) - torch.tensor(float(len(log_p))).log()
    return entropy(mean[None])[0]
