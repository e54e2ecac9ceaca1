"""ProDA: learn a distribution of prompts; a class is a Gaussian whose covariance enters the loss in closed form.

The expected cross-entropy over the Gaussian is bounded from above by cross-entropy of shifted logits, so no sample is
drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.batch import ImageInput, Level
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.parts.prompts import Borrowed, PromptedText, embedded
from emblema.transfer.base import Transfer, coop_recipe

LAYOUTS = ("front", "middle", "end", "end")  # a quarter, a quarter, and half of the prompts


@dataclass(kw_only=True)
class ProDA(Transfer):
    card = Card(
        name="proda",
        title="Prompt Distribution Learning",
        paper="2205.03340",
        year=2022,
        section="6.3.1 text prompt",
        equation="L = CE(s z . mu_c + s^2/2 z' (S_yy + S_cc - 2 S_yc) z, y) + w mean |cos(prompt_i, prompt_j)|",
        reads=Level.POOLED,
        claim="with 16 shots a class, the covariance term makes ProDA more accurate than its mean alone",
        oracle="the term of the true class is 0; the loss bounds the sampled expectation from above",
        deviations=(
            "no official code is public: sizes are those of a re-implementation, 8 prompts here where it has 32",
        ),
    )
    prompts: int = 8
    each_step: int = 4  # prompts of a step
    context_length: int = 16
    covariance: bool = True
    apart: float = 1.0  # w
    optim: Optim = field(default_factory=lambda: coop_recipe())

    def build(self, vlm, class_names):
        return Distribution(vlm, class_names, self.prompts, self.context_length)

    def losses(self, module, batch):
        some = torch.randperm(self.prompts, generator=batch.generator)[: self.each_step].tolist()
        w = module.vectors(some)  # [n, C, D]
        logits = bound(batch.x.pooled, w, batch.labels, module.vlm.scale, self.covariance)
        free = module.nameless(some)  # [n, D]
        off = 1 - torch.eye(len(some))
        apart = ((free @ free.T).abs() * off).sum() / off.sum().clamp(min=1)
        return {"cross_entropy": F.cross_entropy(logits, batch.labels), "apart": self.apart * apart}


class Distribution(Borrowed):
    def __init__(self, vlm, class_names, prompts: int, length: int):
        super().__init__(vlm)
        layouts = [LAYOUTS[i * len(LAYOUTS) // prompts] for i in range(prompts)]
        self.prompts = nn.ModuleList(PromptedText(vlm, class_names, length, layout=each) for each in layouts)
        self.stop = embedded(vlm, ["."])

    def vectors(self, which: list[int]) -> Tensor:
        return torch.stack([self.prompts[i]() for i in which])  # [n, C, D]

    def nameless(self, which: list[int]) -> Tensor:
        """The prompts without a class name: [n, D] unit."""
        contexts = [self.prompts[i].context for i in which]
        return torch.cat([self.vlm.encode_text(self.stop.insert(c, 1)) for c in contexts])  # type: ignore[arg-type]

    def forward(self, x: ImageInput) -> Tensor:
        mean = self.vectors(list(range(len(self.prompts)))).mean(0)  # [C, D], shorter than 1
        return self.vlm.logits(x.pooled, mean)


def bound(z: Tensor, w: Tensor, labels: Tensor, scale: Tensor, covariance: bool = True) -> Tensor:
    """Logits whose cross-entropy bounds the expected one, of [B, D] under prompts [n, C, D]: [B, C].

    s z . mu_c + s^2/2 sum_d z_d^2 (A_d[y, y] + A_d[c, c] - 2 A_d[y, c]), with A_d the covariance of classes in
    dimension d.
    """
    mean = w.mean(0)  # [C, D]
    logits = scale * z @ mean.T
    if not covariance:
        return logits
    off = w - mean  # [n, C, D]
    square = torch.einsum("bd,ncd,ncd->bc", z**2, off, off)
    cross = torch.einsum("bd,nbd,ncd->bc", z**2, off[:, labels], off)
    own = square.gather(1, labels[:, None])
    return logits + 0.5 * scale**2 * (own + square - 2 * cross) / (len(w) + 1)
