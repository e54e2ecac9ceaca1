"""A data set repository of Hugging Face, brought as it is: `data/test-00000-of-00002.parquet`, names in the schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emblema.data.datasets import SPLITS, Skip
from emblema.data.layouts import Found, Needs, Place
from emblema.data.layouts.joined import LATER, Later, items_of
from emblema.data.naming import mend
from emblema.data.parquet import open_parquet
from emblema.data.tables import read_tables

SHARD = re.compile(r"^(.*)-(\d{5})-of-(\d{5})(-\w+)?\.parquet$")


def needs() -> Needs:
    either = lambda *splits: "|".join(f"{folder}{s}-*.parquet" for s in splits for folder in ("data/", ""))
    return {"": (either("test", "validation", "val"),), "train": (either("train"),)}


def read(place: Place) -> Found:
    folder = place.path(needs()[""][0]).parent
    by_split: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.parquet")):
        by_split.setdefault(file.name.split("-")[0], []).append(file)
    names = class_names(next(iter(by_split.values()))[0])

    notes: list[str] = []

    def items() -> Iterator[dict[str, Any] | Skip]:
        for name, files in by_split.items():
            split = SPLITS.get(name, name)
            if place.wants(split):
                yield from _absent(files)
                yield from items_of([(split, read_tables(files))], notes)

    return Found(items(), names, dict.fromkeys(LATER, Later), notes)


def class_names(file: Path) -> list[str]:
    """The names of a `ClassLabel` in the schema's metadata; none where there is none."""
    metadata = open_parquet(file).schema_arrow.metadata or {}
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return next((list(map(mend, f["names"])) for f in features.values() if f.get("_type") == "ClassLabel"), [])


def _absent(files: list[Path]) -> Iterator[Skip]:
    """Shards that the names of the others promise."""
    if match := SHARD.match(files[0].name):
        numbers = {int(m[2]) for f in files if (m := SHARD.match(f.name))}
        for i in sorted(set(range(int(match[3]))) - numbers):
            name = f"{match[1]}-{i:05d}-of-{match[3]}.parquet"
            yield Skip(name, "missing file", f"no file {files[0].parent / name}")
