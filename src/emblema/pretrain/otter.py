"""OTTER: some other text of the batch may fit an image as well; optimal transport says which.

A slowly moving teacher scores all images against all texts. The best joint matching without the pairs themselves
is what the student learns from beside the pairs, so wrong pairs do less harm.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from emblema.core.batch import Batch
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.objectives.contrastive import image_text_contrastive
from emblema.objectives.logit_scale import LogitScale
from emblema.objectives.targets import transport
from emblema.parts.ema import EMA, warm_up
from emblema.pretrain.base import Encoders, Learnt, Pretrain


@dataclass(kw_only=True)
class OTTER(Pretrain):
    card = Card(
        name="otter",
        title="Data Efficient Language-Supervised Zero-Shot Recognition with Optimal Transport Distillation",
        paper="2112.09445",
        year=2022,
        section="5.1 contrastive",
        equation="L = a [CE(S) + CE(S^T)] + (1 - a) [KL(T_I || softmax S_d) + KL(T_T || softmax S_d^T)]",
        needs=("texts",),
        objectives=("contrastive",),
        claim="with 30 % of the pairs mismatched, OTTER > InfoNCE (retrieval R@5 on clean pairs)",
        oracle="ot.sinkhorn for the plan, torch.nn.functional.kl_div for the term",
        deviations=(
            "the self-match is left out on every process; in official code only on the first (the identity it "
            "subtracts always starts at column 0)",
            "the teacher averages BatchNorm's statistics too and normalises with them; official: its own batch's",
            "AdamW instead of SGD at 3e-3: the towers start from random weights, not from pretrained ones",
        ),
    )
    alpha: float = 0.5  # prior probability that a pair is right
    epsilon: float = 0.15  # lambda: how soft the matching is
    rounds: int = 5  # of scaling rows and columns
    decay: float = 0.999  # of the teacher, at most
    optim: Optim = field(default_factory=lambda: Optim(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-8))

    def config(self) -> Any:
        return replace(super().config(), scale="otter")

    def build(self) -> Learnt:
        module = super().build()
        module["distillation_scale"] = LogitScale.preset("otter")
        warm = warm_up(self.decay)
        module["teacher"] = EMA(module["vlm"], lambda n: warm(n + 2))  # official: counts from 1, first step unmoved
        return module

    def encoders(self, module: Learnt) -> Encoders:
        vlm, teacher = module["vlm"], module["teacher"].module

        @torch.no_grad()
        def teacher_text(batch: Batch) -> Tensor:
            return teacher.encode_text(vlm.text.tokenize(batch.texts))  # the student's tokenizer

        return {
            "image": lambda batch: vlm.encode_image(batch.images),  # [B, D]
            "text": lambda batch: vlm.encode_text(batch.texts),
            "teacher_image": torch.no_grad()(lambda batch: teacher.encode_image(batch.images)),
            "teacher_text": teacher_text,
        }

    def compare(self, module: Learnt, z: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        z_image, z_text = z["image"], z["text"]
        t_image, t_text = (
            transport(z["teacher_image"], z["teacher_text"], epsilon=self.epsilon, rounds=self.rounds, direction=way)
            for way in ("i2t", "t2i")
        )  # each [b, B]
        matched = image_text_contrastive(
            z_image, z_text, module["distillation_scale"](), t_image, targets_t2i=t_text, reduction="sum"
        )
        entropy = sum(torch.special.entr(t).sum(1).mean() for t in (t_image, t_text))  # KL = cross-entropy - entropy
        return {
            "image_text": self.alpha * image_text_contrastive(z_image, z_text, module["vlm"].scale, reduction="sum"),
            "transport": (1 - self.alpha) * (matched - entropy),
        }

    def after_step(self, module: Learnt) -> None:
        super().after_step(module)
        module["distillation_scale"].bound_()
        module["teacher"].update(module["vlm"])
