"""Paradigm 2: a network trained from scratch on the task's own labels."""

from __future__ import annotations

import torch
from torch import Tensor

from emblema.bench.paradigms.network import Budget, Network, finetune, pixels_of
from emblema.data.datasets import Records
from emblema.data.selection import Selection
from emblema.engine import seed as seeds

TITLE = "CNN from scratch"


def prepare(records: Records, seed: int, budget: Budget) -> Network:
    """A network as it is born."""
    with seeds.forked(seed, "network"):
        return Network()


def classify(start: Network, seen: Selection, test: Records, seed: int, budget: Budget) -> Tensor:
    labels, classes = torch.tensor(seen.train.labels), len(seen.class_names)
    return finetune(start, pixels_of(seen.train), labels, classes, pixels_of(test), seed, budget, lr=3e-3)
