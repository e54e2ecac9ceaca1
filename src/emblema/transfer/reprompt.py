"""RePrompt: similar training pictures, looked up for each picture, prompt the image tower, weigh the loss and vote.

There is no public code: the abstract says where retrieval enters, the details are a reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.batch import ImageInput, Level
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.engine.inputs import Inputs
from emblema.parts.prompts import deep
from emblema.parts.two_sided import TwoSided
from emblema.transfer.base import Transfer, coop_recipe

RARE = 0.01  # least probability of the neighbours, so that its logarithm exists


@dataclass(kw_only=True)
class RePrompt(Transfer):
    card = Card(
        name="reprompt",
        title="Retrieval-Enhanced Visual Prompt Learning for Few-shot Classification",
        paper="2306.02243",
        year=2023,
        section="6.3.1 visual prompt",
        equation="L = (1 - beta log p_knn(y)) CE; p = mix p_knn + (1 - mix) p_model",
        reads=Level.EMBEDDED,
        closed=True,
        claim="with 16 shots a class, mixing in the neighbours beats the same system without (mix = 0)",
        oracle="no retrieval: text and deep image prompts; p_knn: scikit-learn's weighted neighbours",
        deviations=(
            "retrieved prompts, loss weight and all defaults are a reconstruction: no official code is public",
            "the base is the training pictures themselves, each hidden from itself while training",
            "trained on stored views (the evaluation view by default), not on fresh crops",
        ),
    )
    context_length: int = 4
    image_length: int = 4
    depth: int = 12
    neighbours: int = 8
    retrieved: bool = True  # neighbours prompt the first layer
    beta: float = 0.5  # weight of the neighbours in the loss
    mix: float = 0.3  # their weight in the answer, before it is chosen on validation pictures; 0: none
    optim: Optim = field(default_factory=lambda: coop_recipe(epochs=50.0))

    def build(self, vlm, class_names):
        sizes = {"length": self.context_length, "image_length": self.image_length, "depth": self.depth}
        hand = self.hand(vlm, class_names)
        module = Retrieving(vlm, class_names, hand, self.neighbours, retrieved=self.retrieved, **sizes)
        module.mix = torch.tensor(self.mix)
        return module

    def learn(self, module: Any, train: Inputs, on_step=None):
        rows: Any = torch.arange(len(train))
        views = torch.stack([train.batch(rows, view).x.pooled for view in range(train.views)])  # type: ignore[union-attr]
        module.keys, module.labels = F.normalize(views.mean(0), dim=-1), train.labels
        super().learn(module, train, on_step)

    def losses(self, module: Any, batch: Any):
        near = module.near(batch.x.pooled, batch.targets["index"])
        logits = module.answer(batch.x, near)
        p = module.vote(*near).gather(1, batch.labels[:, None])[:, 0].clamp(min=RARE)  # [B]
        each = F.cross_entropy(logits, batch.labels, reduction="none")
        return {"cross_entropy": ((1 - self.beta * p.log()) * each).mean()}

    @torch.no_grad()
    def select(self, module: Any, val: Inputs):
        """The most accurate share of the neighbours' vote among 0, 0.1, ... 0.9; the smallest of equals.

        A system whose `mix` is 0 does without the vote, so nothing is chosen.
        """
        if not self.mix:
            return
        inputs: list[Any] = [batch.x for batch in val.in_order()]
        near = [module.near(x.pooled) for x in inputs]
        logits = torch.cat([module.answer(x, n) for x, n in zip(inputs, near)])
        votes = torch.cat([module.vote(*n) for n in near])
        shares = torch.arange(10) / 10
        right = [(mixed(logits, votes, share).argmax(-1) == val.labels).float().mean() for share in shares]
        module.mix = shares[torch.stack(right).argmax()]


class Retrieving(TwoSided):
    """Keys [N, D] are frozen features of training pictures, `labels` [N] their classes."""

    hand: Tensor  # [C, D]
    keys: Tensor
    labels: Tensor
    mix: Tensor

    def __init__(self, vlm, class_names, hand: Tensor, k: int, *, image_length: int, retrieved: bool, **sizes):
        super().__init__(vlm, class_names, image_length=image_length, text_depth=1, **sizes)
        self.k = k
        self.register_buffer("hand", hand)
        self.register_buffer("keys", hand.new_zeros(0, hand.shape[1]))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.long))
        self.register_buffer("mix", torch.tensor(0.0))
        self.learner = PromptsOfNeighbours(hand.shape[1], vlm.image.width, image_length) if retrieved else None

    def near(self, z: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Distances and numbers of the k nearest keys: [B, k] each. `hidden` [B] are keys a picture may not see."""
        distance = (2 - 2 * z @ self.keys.T).clamp(min=0).sqrt()  # [B, N] of unit vectors
        others = len(self.keys)
        if hidden is not None and others > 1:
            distance, others = distance.scatter(1, hidden[:, None], torch.inf), others - 1
        return distance.topk(min(self.k, others), largest=False)

    def vote(self, distance: Tensor, index: Tensor) -> Tensor:
        """p_knn(c) ~ sum over the neighbours of class c of exp(-distance): [B, C]."""
        weight = torch.exp(-distance)
        votes = weight.new_zeros(len(weight), len(self.hand)).scatter_add(1, self.labels[index], weight)
        return votes / votes.sum(1, keepdim=True)

    def answer(self, x: ImageInput, near: tuple[Tensor, Tensor]) -> Tensor:
        """Logits of the prompted towers: [B, C]."""
        prompts: list[Tensor] = list(self.image)
        if self.learner is not None:
            index = near[1]
            told = self.learner(x.pooled, self.keys[index], self.hand[self.labels[index]])
            prompts[0] = prompts[0] + told  # [B, n, width]
        z = self.vlm.encode_image(x.tokens, deep(prompts, None))
        return self.vlm.logits(z, self.encode_text())

    def forward(self, x: ImageInput) -> Tensor:
        near = self.near(x.pooled)
        return mixed(self.answer(x, near), self.vote(*near), self.mix)


class PromptsOfNeighbours(nn.Module):
    """The picture asks its neighbours, whose answer is a prompt; nothing is said before training."""

    def __init__(self, dim: int, width: int, length: int):
        super().__init__()
        self.length = length
        self.query, self.key, self.value = nn.Linear(dim, width), nn.Linear(dim, width), nn.Linear(2 * dim, width)
        self.say = nn.Linear(width, length * width)
        nn.init.zeros_(self.say.weight)
        nn.init.zeros_(self.say.bias)

    def forward(self, z: Tensor, keys: Tensor, names: Tensor) -> Tensor:
        """A picture [B, D], its neighbours [B, k, D] and their class vectors [B, k, D] -> [B, n, width]."""
        q, k, v = self.query(z)[:, None], self.key(keys), self.value(torch.cat([keys, names], -1))
        score = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5  # [B, 1, k]
        return self.say((score.softmax(-1) @ v)[:, 0]).unflatten(1, (self.length, -1))


def mixed(logits: Tensor, votes: Tensor, share: Tensor) -> Tensor:
    """log(share * votes + (1 - share) * softmax(logits)): [B, C]."""
    return torch.logaddexp(votes.log() + share.log(), logits.float().log_softmax(-1) + (1 - share).log())
