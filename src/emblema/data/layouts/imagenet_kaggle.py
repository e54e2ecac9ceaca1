"""ImageNet-1k as Kaggle packs it: `ILSVRC/Data/CLS-LOC/train/WNID`, a flat `val`, and its labels in a table."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

from emblema.core.errors import BadData
from emblema.data.datasets import Skip
from emblema.data.image_folder import empty_file
from emblema.data.layouts import Found, Needs, Place
from emblema.data.layouts.classes import read as read_classes
from emblema.data.naming import imagenet

DATA = "ILSVRC/Data/CLS-LOC"


def needs() -> Needs:
    return {"": ("LOC_val_solution.csv", f"{DATA}/val"), "train": (f"{DATA}/train",)}


def read(place: Place) -> Found:
    known = imagenet()
    number = {wnid: i for i, wnid in enumerate(known)}

    def items() -> Iterator[dict[str, Any] | Skip]:
        if place.wants("train") and (place.root / DATA / "train").is_dir():
            yield from read_classes(place, {"train": f"{DATA}/train"}, ids="imagenet").items  # type: ignore[misc]
        if place.wants("test"):
            table = place.root / "LOC_val_solution.csv"
            with table.open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    wnid, name = row["PredictionString"].split()[0], f"{row['ImageId']}.JPEG"
                    if wnid not in number:
                        raise BadData(f"{table}: {row['ImageId']} is of {wnid}, which is no class of ImageNet-1k")
                    picture = place.root / DATA / "val" / name
                    yield empty_file(picture, name) or {
                        "key": name, "image": picture, "label": number[wnid], "split": "test",
                    }  # fmt: skip

    return Found(items(), list(known.values()))
