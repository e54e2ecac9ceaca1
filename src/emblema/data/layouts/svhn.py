"""SVHN's cropped digits in MATLAB files: `X` [32, 32, 3, N] and `y` [N], in which 10 stands for the digit 0.

Source: Netzer et al., 2011. Extra: files (SciPy).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from emblema.core.errors import BadData
from emblema.data.layouts import Found, Needs, Place
from emblema.data.layouts.arrays import Pixels, mat


def needs() -> Needs:
    return {"": ("train_32x32.mat", "test_32x32.mat")}


def read(place: Place) -> Found:
    def items() -> Iterator[dict[str, Any]]:
        for split in filter(place.wants, ("train", "test")):
            file = place.root / f"{split}_32x32.mat"
            data = mat(file)
            if not {"X", "y"} <= data.keys():
                raise BadData(f"{file} holds {sorted(k for k in data if k[0] != '_')}, expected X and y")
            pictures, labels = data["X"].reshape(32, 32, 3, -1), np.atleast_1d(data["y"])
            for i, label in enumerate(labels):
                yield {"key": f"{split}/{i}", "image": pictures[..., i], "label": int(label) % 10, "split": split}

    return Found(items(), place.names.classes, {"image": Pixels})
