"""STL-10's binaries: uint8 pictures of 3 x 96 x 96, each column by column, and labels that count from 1.

Source: Coates, Ng and Lee, 2011.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from emblema.core.errors import BadData
from emblema.data.layouts import Found, Needs, Place
from emblema.data.layouts.arrays import Pixels

SIDE = 96


def needs() -> Needs:
    return {"": ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "class_names.txt")}


def read(place: Place) -> Found:
    names = (place.root / "class_names.txt").read_text(encoding="utf-8").split()

    def items() -> Iterator[dict[str, Any]]:
        for split in filter(place.wants, ("train", "test")):
            file = place.root / f"{split}_X.bin"
            data, labels = np.fromfile(file, np.uint8), np.fromfile(place.root / f"{split}_y.bin", np.uint8)
            if len(data) != len(labels) * 3 * SIDE * SIDE:
                raise BadData(f"{file} has {len(data)} bytes, {split}_y.bin has {len(labels)} labels: one is cut short")
            pictures = data.reshape(-1, 3, SIDE, SIDE).transpose(0, 3, 2, 1)  # [N, H, W, 3]
            for i, (picture, label) in enumerate(zip(pictures, labels)):
                yield {"key": f"{split}/{i}", "image": picture, "label": int(label) - 1, "split": split}

    return Found(items(), names, {"image": Pixels})
