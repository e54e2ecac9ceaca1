"""Facial Emotion Recognition 2013: a table with an emotion, 48 x 48 grey values and a usage a row."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

import numpy as np

from emblema.core.errors import BadData
from emblema.data.datasets import Skip
from emblema.data.layouts import Found, Needs, Place
from emblema.data.layouts.arrays import Pixels

FILE = "fer2013.csv|icml_face_data.csv|fer2013/fer2013.csv"
USAGES = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}


def needs() -> Needs:
    return {"": (FILE,)}


def read(place: Place) -> Found:
    path = place.path(FILE)

    def items() -> Iterator[dict[str, Any] | Skip]:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, skipinitialspace=True)
            if missing := {"emotion", "pixels", "Usage"} - set(rows.fieldnames or ()):
                raise BadData(f"{path} lacks the columns {', '.join(sorted(missing))}; it has {rows.fieldnames}")
            for i, row in enumerate(rows):
                split, values = USAGES.get(row["Usage"], row["Usage"]), np.array(row["pixels"].split(), dtype=np.uint8)
                if len(values) != 48 * 48:
                    yield Skip(f"{path.name}:{i + 2}", "broken row", f"{len(values)} grey values, expected 2304")
                elif place.wants(split):
                    picture = values.reshape(48, 48)
                    yield {"key": f"{split}/{i}", "image": picture, "label": int(row["emotion"]), "split": split}

    return Found(items(), place.names.classes, {"image": Pixels})
