"""Stanford Cars as published: `cars_train`, `cars_test` and the devkit's MATLAB annotations. Extra: files (SciPy).

Source: Krause et al., 2013. Labels count from 1. The original addresses are dead; mirrors keep these files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from emblema.core.errors import BadData
from emblema.data.datasets import Skip
from emblema.data.image_folder import empty_file
from emblema.data.layouts import Found, Needs, Place
from emblema.data.layouts.arrays import mat
from emblema.data.naming import mend

NOTES = {
    "train": "devkit/cars_train_annos.mat",
    "test": "cars_test_annos_withlabels.mat|devkit/cars_test_annos_withlabels.mat",
}


def needs() -> Needs:
    return {"": ("devkit/cars_meta.mat", *NOTES.values(), "cars_train", "cars_test")}


def read(place: Place) -> Found:
    names = [mend(str(n)) for n in np.atleast_1d(mat(place.root / "devkit/cars_meta.mat")["class_names"])]

    def items() -> Iterator[dict[str, Any] | Skip]:
        for split, notes in NOTES.items():
            path = place.path(notes)
            for note in np.atleast_1d(mat(path)["annotations"]) if place.wants(split) else ():
                if not hasattr(note, "class"):
                    raise BadData(f"{path} has no labels: bring cars_test_annos_withlabels.mat")
                key = f"cars_{split}/{note.fname}"
                label = int(getattr(note, "class")) - 1
                file = place.root / key
                yield empty_file(file, key) or {"key": key, "image": file, "label": label, "split": split}

    return Found(items(), names)
