"""Few-shot training sets, and base and novel classes: the same for everybody who names the same seed."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from emblema.core.errors import BadData
from emblema.data.datasets import Records, columns, trainable


def draw(records: Records, shots: int, seed: int | random.Random) -> list[str]:
    """The keys of `shots` records a class, drawn as CoOp draws them: class by class in order of first appearance,
    `random.sample` without replacement under the seed (or by dice that were thrown before: train, then validation).

    A class with fewer records gives all it has. Of records with several labels each, in random order, one is taken
    when it shows a class that fewer than `shots` taken ones show. Raises `BadData` when these are no training records.
    Zhou et al., CoOp (2109.01134); its code's `generate_fewshot_dataset`.
    """
    trainable(records)
    if shots < 1:
        raise BadData(f"{shots} shots: give at least 1")
    by_class: dict[int, list[str]] = {}
    for key, label in zip(records.keys, records.labels):
        if label is not None:
            by_class.setdefault(label, []).append(key)
    dice = seed if isinstance(seed, random.Random) else random.Random(seed)
    if not by_class:
        return _draw_several(records, shots, dice)
    chosen: list[str] = []
    for keys in by_class.values():
        chosen += dice.sample(keys, shots) if len(keys) >= shots else keys
    return chosen


def _draw_several(records: Records, shots: int, dice: random.Random) -> list[str]:
    made = "image" not in records.columns  # scenes: a record is made to be read
    several = [] if made else columns(records, "labels")[0]
    novel = records.novel_classes()
    missing = {label: shots for label, name in enumerate(records.class_names) if name not in novel}
    chosen: list[str] = []
    for row in dice.sample(range(len(records)), len(records)):
        if not any(n > 0 for n in missing.values()):
            break
        shown = (records[row].labels if made else several[row]) or ()
        if any(missing.get(label, shots) > 0 for label in shown):
            chosen.append(records.keys[row])
            for label in shown:
                missing[label] = missing.get(label, shots) - 1
    if not chosen:
        raise BadData(f"{records.card.name} has no labels to draw from")
    return chosen


def halves(class_names: Sequence[str]) -> tuple[list[str], list[str]]:
    """(base, novel) classes of CoCoOp (2203.05557): the first ceil(K/2) labels, and the rest."""
    if len(class_names) < 2:
        raise BadData(f"{len(class_names)} classes cannot be halved into base and novel: give at least 2")
    middle = (len(class_names) + 1) // 2
    return list(class_names[:middle]), list(class_names[middle:])


def partition(records: Records, seed: int = 0) -> Records:
    """A set without splits, split at random within each class: 50 % train, 20 % validation, the rest test, as CoOp
    does where a set has no split of its own."""
    dice, by_class = random.Random(seed), dict[int | None, list[int]]()
    for i, label in enumerate(records.labels):
        by_class.setdefault(label, []).append(i)
    split = [""] * len(records)
    for places in by_class.values():
        dice.shuffle(places)
        n_train, n_val = round(len(places) * 0.5), round(len(places) * 0.2)
        for rank, place in enumerate(places):
            split[place] = "train" if rank < n_train else "val" if rank < n_train + n_val else "test"
    twin = records.alone()
    twin.columns["split"] = split
    twin.report.notes.append("no splits: 50 % train, 20 % validation and 30 % test were drawn within each class")
    return twin


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
