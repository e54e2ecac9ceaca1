"""LoRA: low-rank updates to the query and value projections of both towers' attention (Hu et al., 2021).

The few-shot recipe is that of Zanella and Ben Ayed (2024, arXiv 2405.18541).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from emblema.core.batch import Level
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.parts.tuning import LowRank, Updated, tunable_blocks
from emblema.transfer.base import Transfer


@dataclass(kw_only=True)
class LoRA(Transfer):
    card = Card(
        name="lora",
        title="LoRA: Low-Rank Adaptation of Large Language Models",
        paper="2106.09685",
        year=2022,
        section="6.3.3 other",
        equation="W = W_0 + (alpha / r) B A in q and v; L = CE(s f(x) . t_c, y)",
        reads=Level.EMBEDDED,
        claim="with 16 shots a class, LoRA's accuracy beats CoOp's",
        oracle="peft's LoRA with the same A and B; no step: zero-shot",
        deviations=(
            "no dropout before A (0.25 in the few-shot recipe): the update is added to the weight, not run beside it",
            "50 epochs, in the few-shot recipe 500 steps for each shot",
            "trained on stored views (the evaluation view by default), not on fresh crops",
        ),
    )
    rank: int = 2
    alpha: float = 1.0
    projections: str = "qv"  # of q, k, v
    optim: Optim = field(
        default_factory=lambda: Optim(
            lr=2e-4,
            weight_decay=0.01,
            betas=(0.9, 0.999),
            eps=1e-8,
            warmup=0,
            clip_norm=None,
            epochs=50.0,
            batch_size=32,
        )
    )

    def build(self, vlm, class_names):
        module = Updated(vlm, class_names, self.wording[0])
        stacked = ["qkv".index(p) for p in self.projections]
        for side, tower in (("image", vlm.image), ("text", vlm.text)):
            for i, block in enumerate(tunable_blocks(tower)):
                change = LowRank(block.attention.qkv.weight, stacked, self.rank, self.alpha)
                module.update(f"{side}.blocks.{i}.attention.qkv.weight", change)
        return module
