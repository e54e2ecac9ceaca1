"""Variational prompt tuning (Bayesian prompt learning): the shift that a picture gives to its prompt is random.

A picture gives mean and variance of a Gaussian shift of the context; the likelihood is averaged over samples and the
Gaussian is kept near the standard one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from emblema.core.batch import ImageInput, Level
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.engine import seed
from emblema.parts.prompts import Borrowed, PromptedText
from emblema.transfer.base import Transfer, coop_recipe


@dataclass(kw_only=True)
class VPT(Transfer):
    card = Card(
        name="vpt",
        title="Bayesian Prompt Learning for Image-Language Model Generalization",
        paper="2210.02390",
        year=2023,
        section="6.3.1 text prompt",
        equation="L = -log mean_l p(y | z, V + r_l) + w KL(N(mu(z), var(z)) || N(0, I)),  r_l ~ N(mu(z), var(z))",
        reads=Level.POOLED,
        claim="on novel classes, 10 samples are more accurate than the deterministic mean",
        oracle="variance 0: the prompt shifted by mu(z); the divergence against torch.distributions",
        deviations=(
            "the same samples at test for every picture, from a fixed generator: answers do not change from run to run",
            "one number of samples for all data sets, officially 5 to 40; the unconditional form is left out",
            "right for any batch size, the official code for 1",
        ),
    )
    words: str = "a photo of a"
    samples: int = 10  # L; 0: the mean
    weight: float = 0.001  # of the divergence, a mean over dimensions
    optim: Optim = field(default_factory=lambda: coop_recipe(batch_size=1, epochs=10.0))

    def build(self, vlm, class_names):
        return RandomPrompt(vlm, class_names, self.words, self.samples)

    def losses(self, module, batch):
        mean, log_var = module.shift(batch.x)
        noise = torch.randn(max(self.samples, 1), *mean.shape, generator=batch.generator)
        log_p = module.log_likelihood(batch.x, mean, log_var, noise)  # [L, B, C]
        chosen = log_p[:, torch.arange(len(batch)), batch.labels].logsumexp(0) - math.log(len(log_p))
        return {"likelihood": -chosen.mean(), "divergence": self.weight * divergence(mean, log_var).mean()}

    predict_size = 8


class RandomPrompt(Borrowed):
    def __init__(self, vlm, class_names, words: str, samples: int):
        super().__init__(vlm)
        self.prompt = PromptedText(vlm, class_names, words=words)
        dim, width = vlm.dim, vlm.text.width
        layers = lambda: nn.Sequential(
            *(nn.Linear(dim, dim // 2), nn.ELU()),
            *(nn.Linear(dim // 2, dim // 2), nn.ELU()),
            nn.Linear(dim // 2, width),
        )
        self.mean, self.log_var, self.samples = layers(), layers(), samples

    def shift(self, x: ImageInput) -> tuple[Tensor, Tensor]:
        """mu(z) and log var(z): each [B, d]."""
        return self.mean(x.pooled), self.log_var(x.pooled)

    def log_likelihood(self, x: ImageInput, mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
        """log p(c | z, V + r_l) for noise [L, B, d]: [L, B, C]."""
        r = mean + (0.5 * log_var).exp() * (noise if self.samples else 0 * noise[:1])  # [L, B, d]
        contexts = self.prompt.context + r.flatten(0, 1)[:, None]  # [L * B, M, d]
        texts = self.prompt.of_images(contexts).unflatten(0, r.shape[:2])  # [L, B, C, D]
        return (self.vlm.scale * torch.einsum("bd,lbcd->lbc", x.pooled, texts)).log_softmax(-1)

    def forward(self, x: ImageInput) -> Tensor:
        mean, log_var = self.shift(x)
        noise = torch.randn(max(self.samples, 1), 1, mean.shape[1], generator=seed.generator(0, "test samples"))
        log_p = self.log_likelihood(x, mean, log_var, noise.expand(-1, len(mean), -1))
        return log_p.logsumexp(0) - math.log(len(log_p))


def divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, var) || N(0, I)), a mean over dimensions: [B, d] -> [B]."""
    return 0.5 * (mean**2 + log_var.exp() - 1 - log_var).mean(-1)
