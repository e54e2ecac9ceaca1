"""CoPrompt: coupled prompts and adapters that must agree with the frozen model about a changed input.

The frozen model sees another view of the picture and another sentence about the class; the prompted features are held
near what it says of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.batch import Level
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.core.tokens import Tokens
from emblema.data.descriptions import descriptors
from emblema.engine.inputs import Inputs
from emblema.frameworks.vlm import unit
from emblema.parts.prompts import clean
from emblema.parts.two_sided import Coupled
from emblema.transfer.base import Transfer, coop_recipe


@dataclass(kw_only=True)
class CoPrompt(Transfer):
    card = Card(
        name="coprompt",
        title="Consistency-guided Prompt Learning for Vision-Language Models",
        paper="2306.01195",
        year=2024,
        section="6.3.1 text-visual prompt",
        equation="L = CE + 8 (2 - cos(t, t_0(sentence)) - cos(z, z_0(x')))",
        reads=Level.EMBEDDED,
        claim="CoPrompt's accuracy on novel classes beats that of the same prompts without consistency",
        oracle="ratios 0 and weight 0: MaPLe; terms written out; one other view and sentence of each",
        deviations=(
            "sentences are descriptors in a frame, the hand-written prompts where a class has none, or a JSON file: "
            "no language model is at hand",
            "trained on stored views, two by default: the frozen model sees another one of them",
            "adapters take unit vectors, officially raw ones: without biases the direction is the same",
        ),
    )
    words: str = "a photo"
    fixed: str = "of a "
    depth: int = 9
    views: int = 2
    weight: float = 8.0  # lambda
    image_ratio: float = 0.1
    text_ratio: float = 0.2
    reduction: int = 4
    descriptions: str = ""  # JSON {class name: [descriptors]}; default: what ships with the data
    optim: Optim = field(default_factory=lambda: coop_recipe(lr=3.5e-3, batch_size=4, epochs=8.0))

    def build(self, vlm, class_names):
        names = [self.fixed + name for name in class_names]
        return Adapted(
            vlm, names, (self.image_ratio, self.text_ratio), self.reduction, words=self.words, depth=self.depth
        )

    def learn(self, module: Any, train: Inputs, on_step=None):
        module.sentences = sentence_vectors(module.vlm, self.sentences(train.class_names))
        train = replace(train, targets={"frozen": pooled_views(train), **train.targets})
        super().learn(module, train, on_step)
        del module.sentences

    def sentences(self, class_names) -> list[list[str]]:
        """At least one sentence a class: descriptors in a frame, else the hand-written prompts."""
        found = descriptors(class_names, self.descriptions)
        framed = [[f"a picture of a {clean(n)}, which has {d}." for d in each] for n, each in zip(class_names, found)]
        return [
            own or [template.replace("{}", clean(n)) for template in self.wording]
            for n, own in zip(class_names, framed)
        ]

    def losses(self, module: Any, batch: Any):
        z, t = module.encode_image(batch.x.tokens), module.encode_text()
        z_0 = another(batch.targets["frozen"], batch.generator)
        t_0 = torch.stack([one[torch.randint(len(one), (), generator=batch.generator)] for one in module.sentences])
        return {
            "cross_entropy": F.cross_entropy(module.vlm.logits(z, t), batch.labels),
            "image": self.weight * (1 - F.cosine_similarity(z, z_0)).mean(),
            "text": self.weight * (1 - F.cosine_similarity(t, t_0)).mean(),
        }


class Adapted(Coupled):
    """Coupled prompts; each tower's vector is mixed with a bottleneck's view of it."""

    sentences: list[Tensor]

    def __init__(self, vlm, class_names, ratios: tuple[float, float], reduction: int, **options):
        super().__init__(vlm, class_names, **options)
        self.image_ratio, self.text_ratio = ratios
        self.adapt_image, self.adapt_text = bottleneck(vlm.dim, reduction), bottleneck(vlm.dim, reduction)

    def encode_image(self, tokens: Tokens) -> Tensor:
        z = super().encode_image(tokens)
        return unit(self.image_ratio * self.adapt_image(z) + (1 - self.image_ratio) * z)

    def encode_text(self) -> Tensor:
        t = super().encode_text()
        return unit(self.text_ratio * self.adapt_text(t) + (1 - self.text_ratio) * t)


def bottleneck(dim: int, reduction: int) -> nn.Sequential:
    """ReLU W_2 ReLU W_1"""
    narrow = max(dim // reduction, 1)
    first, second = nn.Linear(dim, narrow, bias=False), nn.Linear(narrow, dim, bias=False)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())


def pooled_views(train: Inputs) -> Tensor:
    """Frozen vectors of every stored view: [N, V, D]."""
    rows = torch.arange(len(train))
    return torch.stack([train.batch(rows, view).x.pooled for view in range(train.views)], 1)  # type: ignore[union-attr]


def another(frozen: Tensor, generator: torch.Generator | None) -> Tensor:
    """The vector of a random view of each picture: [B, V, D] -> [B, D]."""
    view = torch.randint(frozen.shape[1], (len(frozen),), generator=generator)
    return frozen[torch.arange(len(frozen)), view]


@torch.no_grad()
def sentence_vectors(vlm, sentences: list[list[str]]) -> list[Tensor]:
    """One [S_c, D] unit a class."""
    return [vlm.encode_text(each) for each in sentences]
