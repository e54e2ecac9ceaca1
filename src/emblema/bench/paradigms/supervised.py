"""Paradigm 3: supervised pre-training on other classes, then fine-tuning on the task's labels."""

from __future__ import annotations

from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.bench.paradigms.network import MILD, SIZE, WIDTH, Budget, Network, finetune, pixels_of, train
from emblema.data.datasets import Records
from emblema.data.selection import Selection
from emblema.engine import seed as seeds

TITLE = "supervised pre-training + fine-tuning"
FEWEST = 4  # pictures of a concept that is learnt


def prepare(records: Records, seed: int, budget: Budget) -> Network:
    """A network that has learnt to name the concepts of `records`."""
    concepts = records.column("concept")
    count = Counter(c for c in concepts if c)
    names = {c: i for i, c in enumerate(sorted(c for c, n in count.items() if n >= FEWEST))}
    rows = [i for i, c in enumerate(concepts) if c in names]
    pixels, labels = pixels_of(records.subset(rows)), torch.tensor([names[concepts[i]] for i in rows])
    with seeds.forked(seed, "network"):
        module = nn.Sequential(Network(), nn.Linear(WIDTH, len(names)))

    def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
        return F.cross_entropy(module(MILD(pixels[rows], SIZE, generator)), labels[rows])

    train(module, loss, len(labels), budget.pretrain, budget.batch, seed)
    return module[0]  # type: ignore[return-value]


def classify(start: Network, seen: Selection, test: Records, seed: int, budget: Budget) -> Tensor:
    labels, classes = torch.tensor(seen.train.labels), len(seen.class_names)
    return finetune(start, pixels_of(seen.train), labels, classes, pixels_of(test), seed, budget, lr=2e-3)
