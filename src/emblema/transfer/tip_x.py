"""TIP-X: Tip-Adapter's cache with a third vote, by how alike two pictures are to all class texts.

The distributions over classes of a test picture and of a stored one are compared by their divergence, since image
features were never trained to be compared with image features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emblema.core.batch import ImageInput, Level
from emblema.core.card import Card
from emblema.engine.inputs import Inputs
from emblema.parts.adapters import Cache, raw_features
from emblema.transfer.base import Transfer


@dataclass(kw_only=True)
class TipX(Transfer):
    card = Card(
        name="tip_x",
        title="SuS-X: Training-Free Name-Only Transfer of Vision-Language Models",
        paper="2211.16198",
        year=2023,
        section="6.3.2 feature adapter",
        equation="logits = Tip-Adapter's + gamma psi(-KL(p(z) || p(F))) onehot",
        reads=Level.POOLED,
        closed=True,
        claim="with 16 shots a class, TIP-X's accuracy beats Tip-Adapter's",
        oracle="gamma = 0: Tip-Adapter; the divergence against torch.nn.functional.kl_div",
        deviations=(
            "the support set is the few labelled pictures; the paper also retrieves or generates one from names",
            "psi stretches divergences to the range of similarities among the stored pictures; officially over the "
            "whole test set at once, so that an answer would depend on the other test pictures",
        ),
    )
    alpha: float = 1.0  # without pictures to choose on
    beta: float = 1.0
    gamma: float = 0.1
    temperature: float = 0.5  # of the distributions over classes: softer than the model's own by far
    views: int = 10
    search: tuple[float, float, float] = (50.0, 50.0, 30.0)  # largest beta, alpha and gamma of the grid

    def build(self, vlm, class_names):
        hand = self.hand(vlm, class_names)
        return DivergenceCache(vlm, hand, self.alpha, self.beta, self.gamma, self.temperature)

    def learn(self, module, train: Inputs, on_step=None):
        module.fill(raw_features(train.arrays), train.labels)

    def select(self, module, val: Inputs):
        module.search_all(val.arrays["pooled"][0], val.labels, self.search)


class DivergenceCache(Cache):
    gamma: Tensor
    bounds: Tensor

    def __init__(self, vlm, hand: Tensor, alpha: float, beta: float, gamma: float, temperature: float):
        super().__init__(vlm, hand, alpha, beta)
        self.temperature = temperature
        self.register_buffer("gamma", torch.tensor(gamma))
        self.register_buffer("bounds", torch.zeros(4))  # smallest and largest divergence, and similarity, of the keys

    def fill(self, raw: Tensor, labels: Tensor) -> None:
        super().fill(raw, labels)
        d, s = self.divergence(self.keys), self.keys @ self.keys.T
        self.bounds = torch.stack([d.min(), d.max(), s.min(), s.max()])

    def divergence(self, z: Tensor) -> Tensor:
        """KL(p(z) || p(F)) over the classes: [B, N]"""
        p, q = ((v @ self.hand.T / self.temperature).log_softmax(-1) for v in (z, self.keys))  # [B, C], [N, C]
        return (p.exp() * p).sum(-1, keepdim=True) - p.exp() @ q.T

    def divergence_vote(self, z: Tensor) -> Tensor:
        d_low, d_high, s_low, s_high = self.bounds
        near = (self.divergence(z) - d_low) / (d_high - d_low).clamp(min=1e-6) * (s_high - s_low) + s_low
        return -near @ self.values  # [B, C]

    def forward(self, x: ImageInput) -> Tensor:
        return super().forward(x) + self.gamma * self.divergence_vote(x.pooled)

    @torch.no_grad()
    def search_all(self, z: Tensor, y: Tensor, largest: tuple[float, float, float]) -> None:
        """The most accurate of the official grid, 200 betas by 20 alphas by 50 gammas, for [N, D] and [N]."""
        beta_most, alpha_most, gamma_most = largest
        text, divergence = self.vlm.logits(z, self.hand), self.divergence_vote(z)
        gammas = 0.1 + torch.arange(50) * (gamma_most - 0.1) / 50
        best = -1.0
        for beta in 1 + torch.arange(200) * (beta_most - 1) / 200:
            vote = self.vote(z, beta)
            for alpha in 0.1 + torch.arange(20) * (alpha_most - 0.1) / 20:
                said = (text + alpha * vote + gammas[:, None, None] * divergence).argmax(-1)  # [50, N]
                right = (said == y).float().mean(1)
                if right.max() > best:
                    best, self.alpha, self.beta = float(right.max()), alpha, beta
                    self.gamma = gammas[right.argmax()]
