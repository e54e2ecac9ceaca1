"""SubPT: prompts learn in the subspace of their early training, which is where they do not yet overfit.

A first run keeps the context of each early epoch; the main directions of these are all that the second run may use.
NFL, an extra, holds other classes near their hand-written vectors.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from emblema.core.batch import Level
from emblema.core.card import Card
from emblema.core.errors import BadData
from emblema.data.catalog import load
from emblema.engine.inputs import Inputs
from emblema.engine.optimise import optimise
from emblema.parts.prompts import PromptClassifier, PromptedText
from emblema.transfer.base import Learnt, Transfer


@dataclass(kw_only=True)
class SubPT(Transfer):
    card = Card(
        name="subpt",
        title="Understanding and Mitigating Overfitting in Prompt Tuning for Vision-Language Models",
        paper="2211.02219",
        year=2023,
        section="6.3.1 text prompt",
        equation="g <- U' U g,  U: r main directions of the contexts of epochs 1..t;  NFL: + v mean_k (1 - t_k . h_k)",
        reads=Level.POOLED,
        claim="at the last epoch of a long training, SubPT is more accurate than CoOp",
        oracle="sklearn.decomposition.PCA; a full basis: CoOp; projected gradients stay in the span",
        deviations=(
            "directions are those of the code, centred contexts; the paper speaks of gradients",
            "the first run ends where its early part does: the rest is not used",
            "NFL's names are drawn concepts or a file, officially 100 of ImageNet; it is off unless asked for",
        ),
    )
    context_length: int = 16
    early: float = 0.3  # t, of all epochs; officially 10 of 50 (1 shot), 30 of 100 (4), 50 of 200 (16)
    rank: int = 10  # r
    nfl: float = 0.0  # v; officially 1 where it is used
    names: str = ""  # of NFL: a text file, a name a line; default: 100 classes of emblem-objects that are none here

    def build(self, vlm, class_names):
        module = PromptClassifier(vlm, class_names, self.context_length)
        module.register_buffer("basis", torch.zeros(0, module.prompt.context.numel()), persistent=False)  # U [r, M d]
        return module

    def learn(self, module, train: Inputs | None, on_step=None):
        assert train is not None
        if self.nfl:
            others = other_names(train.class_names, self.names)
            module.others = PromptedText(module.vlm, others, self.context_length)
            module.others.context = module.prompt.context  # the same words
            module.others.hand = self.hand(module.vlm, others)  # [K, D]
        first, contexts = self.explored(module, train)
        module.basis = directions(contexts, self.rank)
        with torch.no_grad():
            module.prompt.context.copy_(first)
        super().learn(module, train, on_step)
        module.others = None

    def losses(self, module, batch):
        terms = super().losses(module, batch)
        if self.nfl:
            terms["others"] = self.nfl * (1 - (module.others() * module.others.hand).sum(-1)).mean()
        return terms

    def explored(self, module: Learnt, train: Inputs) -> tuple[Tensor, Tensor]:
        """A first run: the context after the first epoch, and [t, M d] after each of the early ones."""
        optim, per_epoch, total = self.optim, train.epoch_steps(self.optim.batch_size), train.total_steps(self.optim)
        steps, kept = min(max(round(self.early * total), 2 * per_epoch), total), []  # two epochs make a direction

        def keep(step):
            if step.number % per_epoch == 0 or step.number == steps:
                kept.append(module.prompt.context.detach().clone())

        batches = itertools.islice(train.batches(optim, self.seed), steps)
        optimise(self, module, batches, optim, total_steps=total, epoch_steps=per_epoch, on_step=keep)
        return kept[0], torch.stack(kept).flatten(1)

    def backward(self, module: Learnt, losses):
        super().backward(module, losses)
        if len(module.basis):
            grad = module.prompt.context.grad
            grad.copy_((module.basis.T @ (module.basis @ grad.flatten())).view_as(grad))


def other_names(class_names: list[str], path: str) -> list[str]:
    """At most 100 names that are none of `class_names`."""
    given = Path(path).read_text(encoding="utf-8").splitlines() if path else None
    names = load("emblem-objects").class_names[::6] if given is None else given
    found = [name for name in dict.fromkeys(n.strip() for n in names) if name and name not in class_names]
    if not found:
        raise BadData(f"{path or 'emblem-objects'} has no name that is not among the classes: give other names")
    return found[:100]


def directions(contexts: Tensor, rank: int) -> Tensor:
    """The main directions of centred rows [t, P], orthonormal: [r, P] with r at most `rank` and t - 1."""
    centred = contexts - contexts.mean(0)
    _, values, rows = torch.linalg.svd(centred.double(), full_matrices=False)
    kept = min(rank, int((values > 1e-6 * values[:1].clamp(min=1e-30)).sum()))
    return rows[:kept].to(contexts.dtype)
