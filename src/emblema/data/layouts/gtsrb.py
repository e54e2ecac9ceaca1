"""GTSRB: `00000/GT-00000.csv` in each training folder and `GT-final_test.csv`, or Kaggle's `Train.csv` and `Test.csv`.

Source: Stallkamp et al., 2011. Names of the signs are CLIP's.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emblema.core.errors import BadData
from emblema.data.datasets import Skip
from emblema.data.image_folder import empty_file
from emblema.data.layouts import Found, Needs, Place

TEST = "GT-final_test.csv|Final_Test/Images/GT-final_test.csv"


def needs(train: str, test: str) -> Needs:
    if train == "Train":
        return {"": ("Test.csv", "Test", "Train.csv", "Train")}
    return {"": (TEST, test), "train": (train,)}


def read(place: Place, train: str, test: str) -> Found:
    kaggle = train == "Train"

    def items() -> Iterator[dict[str, Any] | Skip]:
        for split in filter(place.wants, ("train", "test")):
            for folder, path in _tables(place, split, kaggle, train, test):
                if not path.exists():
                    yield Skip(path.name, "missing file", f"no file {path} with the labels of {folder}")
                    continue
                for row in _rows(path):
                    name = row["Path"] if kaggle else row["Filename"]
                    file = (place.root if kaggle else folder) / name
                    key = file.relative_to(place.root).as_posix()
                    label = int(row["ClassId"])
                    yield empty_file(file, key) or {"key": key, "image": file, "label": label, "split": split}

    return Found(items(), place.names.classes)


def _tables(place: Place, split: str, kaggle: bool, train: str, test: str) -> list[tuple[Path, Path]]:
    """[(folder of pictures, their table)]"""
    if kaggle:
        return [(place.root / split.title(), place.root / f"{split.title()}.csv")]
    if split == "test":
        return [(place.root / test, place.path(TEST))]
    root = place.root / train
    folders = sorted(f for f in root.iterdir() if f.is_dir()) if root.is_dir() else []
    return [(f, f / f"GT-{f.name}.csv") for f in folders]


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        separator = ";" if ";" in file.readline() else ","
        file.seek(0)
        reader = csv.DictReader(file, delimiter=separator)
        if "ClassId" not in (reader.fieldnames or ()):
            raise BadData(f"{path} has columns {reader.fieldnames}, expected ClassId (the test table with labels)")
        yield from reader
