"""Oxford 102 Flowers as published: `jpg/image_00001.jpg`, `imagelabels.mat`, `setid.mat`. Extra: files (SciPy).

Source: Nilsback and Zisserman, 2008. Labels count from 1; the names are those that go with CLIP and CoOp.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from emblema.data.datasets import Skip
from emblema.data.image_folder import empty_file
from emblema.data.layouts import Found, Needs, Place
from emblema.data.layouts.arrays import mat

KEYS = {"train": "trnid", "val": "valid", "test": "tstid"}


def needs() -> Needs:
    return {"": ("jpg", "imagelabels.mat", "setid.mat")}


def read(place: Place) -> Found:
    labels = np.atleast_1d(mat(place.root / "imagelabels.mat")["labels"])
    sets = mat(place.root / "setid.mat")

    def items() -> Iterator[dict[str, Any] | Skip]:
        for split, key in KEYS.items():
            for number in np.atleast_1d(sets[key]) if place.wants(split) else ():
                name = f"image_{number:05d}.jpg"
                file, label = place.root / "jpg" / name, int(labels[number - 1]) - 1
                yield empty_file(file, name) or {"key": name, "image": file, "label": label, "split": split}

    return Found(items(), place.names.classes)
