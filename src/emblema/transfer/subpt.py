"""SubPT: prompts learn in the subspace of their early training, which is where they do not yet overfit.

A first run keeps the context of each early epoch; the main directions of these are all that the second run may use.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from emblema.core.batch import Level
from emblema.core.card import Card
from emblema.engine.inputs import Inputs
from emblema.engine.optimise import optimise
from emblema.parts.prompts import PromptClassifier
from emblema.transfer.base import Transfer


@dataclass(kw_only=True)
class SubPT(Transfer):
    card = Card(
        name="subpt",
        title="Understanding and Mitigating Overfitting in Prompt Tuning for Vision-Language Models",
        paper="2211.02219",
        year=2023,
        section="6.3.1 text prompt",
        equation="g <- U' U g,  U: r main directions of the contexts of epochs 1..t",
        reads=Level.POOLED,
        claim="at the last epoch of a long training, SubPT is more accurate than CoOp",
        oracle="sklearn.decomposition.PCA; a full basis: CoOp; projected gradients stay in the span",
        deviations=(
            "directions are those of the code, centred contexts; the paper speaks of gradients",
            "the term on other class names (NFL) is left out: it needs a list of 100 ImageNet names as further classes",
        ),
    )
    context_length: int = 16
    early: int = 20  # t, epochs
    rank: int = 10  # r

    def build(self, vlm, class_names):
        module = PromptClassifier(vlm, class_names, self.context_length)
        module.register_buffer("basis", torch.zeros(0, module.prompt.context.numel()), persistent=False)  # U [r, M d]
        return module

    def learn(self, module, train: Inputs, on_step=None):
        first, contexts = self.explored(module, train)
        module.basis = directions(contexts, self.rank)
        with torch.no_grad():
            module.prompt.context.copy_(first)
        super().learn(module, train, on_step)

    def explored(self, module, train: Inputs) -> tuple[Tensor, Tensor]:
        """A first run: the context after the first epoch, and [t, M d] after each of the early ones."""
        optim, per_epoch, total = self.optim, train.epoch_steps(self.optim.batch_size), train.total_steps(self.optim)
        steps, kept = min(self.early * per_epoch, total), []

        def keep(step):
            if step.number % per_epoch == 0 or step.number == steps:
                kept.append(module.prompt.context.detach().clone())

        batches = itertools.islice(train.batches(optim, self.seed), steps)
        optimise(self, module, batches, optim, total_steps=total, epoch_steps=per_epoch, on_step=keep)
        return kept[0], torch.stack(kept).flatten(1)

    def backward(self, module, losses):
        super().backward(module, losses)
        if len(module.basis):
            grad = module.prompt.context.grad
            grad.copy_((module.basis.T @ (module.basis @ grad.flatten())).view_as(grad))


def directions(contexts: Tensor, rank: int) -> Tensor:
    """The main directions of centred rows [t, P], orthonormal: [r, P] with r at most `rank` and t - 1."""
    centred = contexts - contexts.mean(0)
    _, values, rows = torch.linalg.svd(centred.double(), full_matrices=False)
    kept = min(rank, int((values > 1e-6 * values[:1].clamp(min=1e-30)).sum()))
    return rows[:kept].to(contexts.dtype)
