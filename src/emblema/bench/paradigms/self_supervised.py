"""Paradigm 4: self-supervised pre-training without labels (SimCLR, 2002.05709; survey Eq. 1), then fine-tuning."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.bench.paradigms.network import SIZE, WIDTH, Budget, Network, finetune, pixels_of, train
from emblema.data.datasets import Records
from emblema.data.selection import Selection
from emblema.engine import seed as seeds
from emblema.objectives.contrastive import nt_xent
from emblema.parts.views import Views

TITLE = "self-supervised pre-training + fine-tuning"
STRONG = Views(scale=(0.3, 1.0), turn=10, jitter=0.4, hue=0.1, grey=0.2, blur=0.2, background=False)
TEMPERATURE = 0.2


def prepare(records: Records, seed: int, budget: Budget) -> Network:
    """A network that has learnt which two views show one picture. Two views count as two pictures of the budget."""
    pixels = pixels_of(records)
    with seeds.forked(seed, "network"):
        module = nn.Sequential(Network(), nn.Linear(WIDTH, 128), nn.ReLU(), nn.Linear(128, 64))

    def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
        views = [STRONG(pixels[rows], SIZE, generator) for _ in range(2)]
        z = F.normalize(module(torch.cat(views)).float(), dim=-1)  # [2B, 64]
        one, other = z.chunk(2)
        return nt_xent(one, other, TEMPERATURE)

    train(module, loss, len(pixels), budget.pretrain // 2, 2 * budget.batch, seed)
    return module[0]  # type: ignore[return-value]


def classify(start: Network, seen: Selection, test: Records, seed: int, budget: Budget) -> Tensor:
    labels, classes = torch.tensor(seen.train.labels), len(seen.class_names)
    return finetune(start, pixels_of(seen.train), labels, classes, pixels_of(test), seed, budget, lr=2e-3)
