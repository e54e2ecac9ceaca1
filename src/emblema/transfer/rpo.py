"""RPO: prompts that read the tokens of both towers and are read by none, so the pre-trained features never move.

Each of K prompts in one tower has a partner in the other; a logit is the mean of the K cosines.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.batch import ImageInput, Level
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.core.tokens import Edit, Tokens
from emblema.encoders.text import cut
from emblema.frameworks.vlm import unit
from emblema.parts.prompts import Borrowed, clean, embedded
from emblema.parts.two_sided import prompted_layers
from emblema.transfer.base import Transfer, coop_recipe


@dataclass(kw_only=True)
class RPO(Transfer):
    card = Card(
        name="rpo",
        title="Read-only Prompt Optimization for Vision-Language Few-shot Learning",
        paper="2308.14960",
        year=2023,
        section="6.3.1 text-visual prompt",
        equation="L = CE(mean_k s v_k(x) . t_k(c), y), prompts masked as keys",
        reads=Level.EMBEDDED,
        claim="RPO's harmonic mean of base and novel accuracy beats CoOp's",
        oracle="all other tokens leave every layer as without prompts; prompts do not read each other",
        deviations=(
            "the hand-written sentence is the first template of the data set",
            "trained on stored views (the evaluation view by default), not on fresh crops",
            "towers without [CLS] begin from the mean of the embedded patches of a black picture",
        ),
    )
    prompts: int = 24  # K
    noise: float = 0.1  # length of what is added to [CLS] and [EOT] at the beginning
    optim: Optim = field(default_factory=lambda: coop_recipe(lr=0.01, batch_size=4, epochs=15.0))

    def build(self, vlm, class_names):
        texts = [self.wording[0].replace("{}", clean(name)) for name in class_names]
        return ReadOnly(vlm, embedded(vlm, texts), self.prompts, self.noise)


class ReadOnly(Borrowed):
    vlm: Any

    def __init__(self, vlm, texts: Tokens, prompts: int, noise: float):
        super().__init__(vlm)
        prompted_layers(1, vlm.image, vlm.text)
        self.groups = by_length(texts)
        self.of_text = nn.Parameter(near(texts.x[0, int(texts.length[0]) - 1], prompts, noise))  # type: ignore[index]
        self.of_image = nn.Parameter(near(whole_image(vlm.image), prompts, noise))

    def encode_text(self) -> Tensor:
        """[K, C, D] unit"""
        out = self.of_text.new_zeros(len(self.of_text), sum(len(rows) for rows, _ in self.groups), self.vlm.dim)
        for rows, tokens in self.groups:
            out = out.index_copy(1, rows, self.features(self.vlm.text, tokens, self.of_text))
        return out

    def encode_image(self, tokens: Tokens) -> Tensor:
        """[K, B, D] unit"""
        return self.features(self.vlm.image, tokens, self.of_image)

    def features(self, tower, tokens: Tokens, prompts: Tensor) -> Tensor:
        """What the prompts have read by the end, in the joint space: [K, B, D] unit."""
        x = tower.transform(tokens, read_only(prompts)).x[:, -len(prompts) :]  # [B, K, width]
        return unit(tower.project(tower.norm(x))).transpose(0, 1)

    def forward(self, x: ImageInput) -> Tensor:
        return self.vlm.logits(self.encode_image(x.tokens), self.encode_text()).mean(0)  # [K, B, C] -> [B, C]


def read_only(prompts: Tensor) -> Edit:
    """Prompts [K, width] behind the tokens that enter layer 0, without positions; nobody reads them."""

    def edit(i: int, tokens: Tokens) -> Tokens:
        if i:
            return tokens
        tokens = tokens.insert(prompts, None, read_only=True)
        visible = tokens.visible.clone()  # type: ignore[union-attr]
        visible[:, -len(prompts) :] = False
        return replace(tokens, visible=visible)

    return edit


def by_length(texts: Tokens) -> list[tuple[Tensor, Tokens]]:
    """Texts of one length together, so that a prompt behind them is behind each: (rows, tokens)."""
    assert texts.length is not None
    groups = []
    for length in texts.length.unique().tolist():
        rows = (texts.length == length).nonzero()[:, 0]
        some = replace(texts, x=texts.x[rows], pool_at=texts.pool_at[rows], length=texts.length[rows], shared=0)
        groups.append((rows, cut(some, length)))
    return groups


def near(x: Tensor, count: int, noise: float) -> Tensor:
    """`count` vectors at the distance `noise` from x [width]."""
    return x.detach() + noise * F.normalize(torch.randn(count, len(x)), dim=-1)


def whole_image(tower) -> Tensor:
    """What a prompt begins from: the [CLS] embedding, else the mean of an empty picture's patches: [width]."""
    if getattr(tower, "class_token", None) is not None:
        return tower.class_token
    blank = torch.zeros(1, 3, tower.image_size, tower.image_size, dtype=torch.uint8)
    with torch.no_grad():
        return tower.embed(blank).x[0].mean(0)
