"""Few-shot training sets: the same K pictures a class for everybody who names the same seed."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

from emblema.core.errors import BadData
from emblema.data.datasets import Records, trainable


def draw(records: Records, shots: int, seed: int) -> list[str]:
    """The keys of `shots` records a class, drawn as CoOp draws them: `random.sample` class by class under one seed.

    The draw is from training records in the order of their classes and keys, so it does not hang on the order of files.
    A class with fewer records gives all it has. Raises `BadData` when these are no training records.
    """
    trainable(records)
    if shots < 1:
        raise BadData(f"{shots} shots: give at least 1")
    by_class: dict[int, list[str]] = {}
    for key, label in zip(records.keys, records.labels):
        if label is not None:
            by_class.setdefault(label, []).append(key)
    if not by_class:
        raise BadData(f"{records.card.name} has no labels to draw from")
    dice = random.Random(seed)
    chosen: list[str] = []
    for label in sorted(by_class):
        keys = sorted(by_class[label])
        chosen += dice.sample(keys, shots) if len(keys) > shots else keys
    return chosen


def take(records: Records, keys: list[str]) -> Records:
    """The records with these keys, in their order. Raises `BadData` when some are missing."""
    place = {key: i for i, key in enumerate(records.keys)}
    if missing := [k for k in keys if k not in place]:
        raise BadData(f"{records.card.name} lacks {len(missing)} of the {len(keys)} keys of this draw: {missing[:3]}")
    return records.subset([place[k] for k in keys])


def few_shot(records: Records, shots: int, seed: int) -> Records:
    """`shots` training records a class."""
    return take(records, draw(records, shots, seed))


def save_draws(path: Path | str, draws: Mapping[tuple[int, int], list[str]]) -> None:
    """Write {(shots, seed): keys} as JSON that can be read again and compared."""
    data = {f"{shots}-shot/seed-{seed}": keys for (shots, seed), keys in sorted(draws.items())}
    Path(path).write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")
