"""WiSE-FT: fine-tune, then go part of the way back: weights between the zero-shot and the fine-tuned model.

The average keeps what fine-tuning gains on the target and what the zero-shot model knows of shifted pictures.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor, nn
from torch.func import functional_call

from emblema.core.batch import Batch, Level
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.parts.tuning import FineTuned
from emblema.transfer.base import Transfer


@dataclass(kw_only=True)
class WiSEFT(Transfer):
    card = Card(
        name="wise_ft",
        title="Robust fine-tuning of zero-shot models",
        paper="2109.01903",
        year=2022,
        section="6.3.3 other",
        equation="theta = (1 - alpha) theta_0 + alpha theta_1",
        reads=Level.PIXELS,
        needs=("pooled",),
        closed=True,
        claim="under a shift, alpha = 0.5 beats alpha = 1, the fine-tuned model",
        oracle="alpha 0: zero-shot; alpha 1: the fine-tuned model; head alone: logits are linear in alpha",
        deviations=(
            "trained on stored views (the evaluation view by default), not on fresh crops",
            "statistics of batch norms stay the pre-trained ones, so there is nothing to average in them",
            "batches of 32 and a tenth of the steps to warm up, for few pictures; officially 512 and 500 steps",
        ),
    )
    alpha: float = 0.5
    head_only: bool = False  # the classifier alone, on cached features
    optim: Optim = field(
        default_factory=lambda: Optim(
            lr=3e-5, weight_decay=0.1, betas=(0.9, 0.999), eps=1e-8, warmup=0.1, epochs=10.0, batch_size=32
        )
    )

    def build(self, vlm, class_names):
        return FineTuned(vlm, self.hand(vlm, class_names), tower=not self.head_only)

    def logits(self, module: nn.Module, batch: Batch) -> Tensor:
        return functional_call(module, self.between(module), (batch.x,))

    def between(self, module: Any) -> dict[str, Tensor]:
        """(1 - alpha) theta_0 + alpha theta_1 of every learnt weight."""
        before = {f"tower.{name}": p for name, p in module.vlm.image.named_parameters()} | {"head": module.start}
        return {name: before[name].lerp(p, self.alpha) for name, p in module.named_parameters()}

    def at(self, alpha: float) -> Self:
        """The same fitted weights at another `alpha`."""
        twin = copy.copy(self)
        twin.alpha = alpha
        return twin
