"""Tip-Adapter: a cache of the few labelled pictures votes beside the text; nothing is trained.

Each training picture is a key, its one-hot label the value; the two settings of the vote are searched on validation
pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from emblema.core.batch import ImageInput, Level
from emblema.core.card import Card
from emblema.engine.inputs import Inputs
from emblema.parts.prompts import Borrowed
from emblema.transfer.base import Transfer


@dataclass(kw_only=True)
class TipAdapter(Transfer):
    card = Card(
        name="tip_adapter",
        title="Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification",
        paper="2207.09519",
        year=2022,
        section="6.3.2 feature adapter",
        equation="logits = s z . t_c + alpha exp(-beta (1 - z . F)) onehot",
        reads=Level.POOLED,
        closed=True,
        claim="with 16 shots a class, Tip-Adapter's accuracy beats zero-shot",
        oracle="alpha = 0: zero-shot; beta = 0: a constant a class; the formula in numpy",
        deviations=(
            "alpha and beta are searched on min(shots, 4) validation pictures a class, officially on the whole "
            "validation split, for ImageNet on the test split",
            "the scale is the model's own, officially 100",
        ),
    )
    alpha: float = 1.0  # before the search
    beta: float = 1.0
    views: int = 10  # a key is the mean feature of these crops
    search: tuple[float, float] = (12.0, 10.0)  # largest beta and alpha of the grid

    def build(self, vlm, class_names):
        return Cache(vlm, self.hand(vlm, class_names), self.alpha, self.beta)

    def learn(self, module, train: Inputs, on_step=None):
        raw = train.arrays["pooled"] * train.arrays["norm"][..., None]  # [V, N, D]
        module.keys = F.normalize(raw.mean(0), dim=-1)
        module.values = F.one_hot(train.labels, len(module.hand)).float()

    def select(self, module, val: Inputs):
        module.search(val, *self.search)


class Cache(Borrowed):
    """Text logits and the vote of the stored pictures."""

    def __init__(self, vlm, hand: Tensor, alpha: float, beta: float):
        super().__init__(vlm)
        self.register_buffer("hand", hand)  # [C, D]
        self.register_buffer("keys", hand.new_zeros(0, hand.shape[1]))  # [N, D]
        self.register_buffer("values", hand.new_zeros(0, len(hand)))  # [N, C]
        self.register_buffer("alpha", torch.tensor(alpha))
        self.register_buffer("beta", torch.tensor(beta))

    def forward(self, x: ImageInput) -> Tensor:
        return self.vlm.logits(x.pooled, self.hand) + self.alpha * self.vote(x.pooled, self.beta)  # [B, C]

    def vote(self, z: Tensor, beta: Tensor) -> Tensor:
        return torch.exp(-beta * (1 - z @ self.keys.T)) @ self.values  # [B, C]

    @torch.no_grad()
    def search(self, val: Inputs, largest_beta: float, largest_alpha: float) -> None:
        """The best of the official grid, 200 betas by 20 alphas; the first of equals."""
        z, y = val.arrays["pooled"][0], val.labels
        text = self.vlm.logits(z, self.hand)
        best = -1.0
        for i in range(200):
            beta = torch.tensor(0.1 + i * (largest_beta - 0.1) / 200)
            vote = self.vote(z, beta)
            for j in range(20):
                alpha = torch.tensor(0.1 + j * (largest_alpha - 0.1) / 20)
                right = ((text + alpha * vote).argmax(-1) == y).float().mean().item()
                if right > best:
                    best, self.alpha, self.beta = right, alpha, beta
