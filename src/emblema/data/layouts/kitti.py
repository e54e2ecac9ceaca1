"""KITTI Distance: how near the nearest vehicle is, from KITTI's `label_2` files (VTAB, Zhai et al., 2019).

The distance is that along the camera's axis of the nearest car, van or truck: below 8 m, below 20 m, farther, or none.
KITTI's own test pictures have no labels, so its training drives are split as VTAB does: a tenth of the drives, drawn by
seed, is the test split and another the validation split, which needs `mapping/` of the development kit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from emblema.core.errors import BadData
from emblema.data.datasets import Skip
from emblema.data.image_folder import empty_file
from emblema.data.layouts import Found, Needs, Place

IMAGES, LABELS = "training/image_2", "training/label_2"
ORDER = "mapping/train_rand.txt|devkit_object/mapping/train_rand.txt"
DRIVES = "mapping/train_mapping.txt|devkit_object/mapping/train_mapping.txt"
VEHICLES = ("Car", "Van", "Truck")
EDGES = (8.0, 20.0, 999.0)  # metres; what is farther is no vehicle at all


def needs() -> Needs:
    return {"": (IMAGES, LABELS, ORDER, DRIVES)}


def read(place: Place) -> Found:
    split_of = splits(place.path(ORDER), place.path(DRIVES))

    def items() -> Iterator[dict[str, Any] | Skip]:
        for number, split in enumerate(split_of):
            if not place.wants(split):
                continue
            key = f"{number:06d}"
            image, told = place.root / IMAGES / f"{key}.png", place.root / LABELS / f"{key}.txt"
            if not told.exists():
                yield Skip(key, "missing file", f"no file {told} with what {key}.png shows")
                continue
            yield empty_file(image, key) or {"key": key, "image": image, "label": nearest(told), "split": split}

    return Found(items(), place.names.classes)


def nearest(file: Path) -> int:
    """Class of a label file, whose lines are: type, 10 numbers of the box, then x, y, z in metres, then a turn."""
    lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if short := next((line for line in lines if len(line) < 14), None):
        raise BadData(f"{file}: the line {' '.join(short)!r} has {len(short)} fields, expected 15")
    away = min((float(line[13]) for line in lines if line[0] in VEHICLES), default=1000.0)
    return int(np.searchsorted(EDGES, away))  # an edge belongs to the nearer class


def splits(order: Path, drives: Path) -> list[str]:
    """The split of each training picture. `order` says which line of `drives` (date, drive, frame) it comes from."""
    lines = drives.read_text(encoding="utf-8").splitlines()
    numbers = [int(n) - 1 for n in order.read_text(encoding="utf-8").replace("\n", ",").split(",") if n.strip()]
    if not numbers or max(numbers) >= len(lines):
        raise BadData(f"{order} speaks of line {max(numbers, default=-1) + 1}, {drives} has {len(lines)}")
    drive_of = [lines[n].split()[1] for n in numbers]
    drives_left = sorted(set(drive_of))
    tenth = max(1, len(drives_left) // 10)
    dice = np.random.RandomState(123)  # the draw of VTAB's data, so that its counts come out
    test = set(dice.choice(drives_left, tenth, replace=False))
    val = set(dice.choice(sorted(set(drives_left) - test), tenth, replace=False))
    return ["test" if d in test else "val" if d in val else "train" for d in drive_of]
