"""What feature adapters share: a cache of labelled pictures that votes beside the text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.batch import ImageInput
from emblema.parts.prompts import Borrowed

if TYPE_CHECKING:
    from emblema.frameworks.vlm import VLM


class Cache(Borrowed):
    """logits = s z . t_c + alpha exp(-beta (1 - z . F)) onehot. Keys [N, D] are learnt where `trained`."""

    hand: Tensor  # [C, D]
    keys: Tensor
    values: Tensor  # [N, C]
    alpha: Tensor
    beta: Tensor

    def __init__(self, vlm: VLM, hand: Tensor, alpha: float, beta: float, *, trained: bool = False):
        super().__init__(vlm)
        self.register_buffer("hand", hand)
        if trained:
            self.register_parameter("keys", nn.Parameter(hand.new_zeros(0, hand.shape[1])))
        else:
            self.register_buffer("keys", hand.new_zeros(0, hand.shape[1]))
        self.register_buffer("values", hand.new_zeros(0, len(hand)))
        self.register_buffer("alpha", torch.tensor(alpha))
        self.register_buffer("beta", torch.tensor(beta))

    def fill(self, raw: Tensor, labels: Tensor) -> None:
        """Keys are unit means over the views of raw features [V, N, D]; values are one-hot labels [N]."""
        keys = F.normalize(raw.mean(0), dim=-1)
        self.keys = nn.Parameter(keys) if isinstance(self.keys, nn.Parameter) else keys
        self.values = F.one_hot(labels, len(self.hand)).float()

    def forward(self, x: ImageInput) -> Tensor:
        return self.vlm.logits(x.pooled, self.hand) + self.alpha * self.vote(x.pooled, self.beta)  # [B, C]

    def vote(self, z: Tensor, beta: Tensor) -> Tensor:
        return torch.exp(-beta * (1 - z @ self.keys.T)) @ self.values  # [B, C]

    @torch.no_grad()
    def search(self, z: Tensor, y: Tensor, largest_beta: float, largest_alpha: float) -> None:
        """The most accurate of the official grid, 200 betas by 20 alphas, for [N, D] and [N]; the first of equals."""
        text, best = self.vlm.logits(z, self.hand), -1.0
        alphas = 0.1 + torch.arange(20, device=z.device) * (largest_alpha - 0.1) / 20
        for i in range(200):
            beta = torch.tensor(0.1 + i * (largest_beta - 0.1) / 200)
            said = (text + alphas[:, None, None] * self.vote(z, beta)).argmax(-1)  # [20, N]
            right = (said == y).float().mean(1)
            if right.max() > best:
                best, self.alpha, self.beta = float(right.max()), alphas[right.argmax()], beta


def raw_features(arrays: dict[str, Tensor]) -> Tensor:
    """Joint features before they were made unit vectors: [V, N, D]."""
    return arrays["pooled"] * arrays["norm"][..., None]
