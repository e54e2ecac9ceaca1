"""The sets that ship with the package: parquet files beside `cards.json`; views borrow pictures from `emblems`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path

import numpy as np

from emblema.core.card import DatasetCard
from emblema.core.errors import BadData
from emblema.data.catalog import FOLDER, read_cards
from emblema.data.datasets import Records, encode_labels
from emblema.data.parquet import ArrowColumn, Joined, LazyColumn, table_columns

LENDER = "emblems"  # whose pictures the views show


def read_bundled(name: str, folder: Path | None = None) -> Records:
    """All records of a bundled set. Raises `BadData` when its file is missing or does not fit its card."""
    return _read(name, folder or FOLDER)


@cache
def _read(name: str, folder: Path) -> Records:
    path = folder / f"{name}.parquet"
    if not path.exists():
        raise BadData(f"{name} should ship with the package, but {path} is missing: install emblema again")
    columns = table_columns([path])
    if "frames" in columns:
        columns["image"] = columns.pop("frames")
    if "image" not in columns:
        columns["image"] = _borrowed(columns["key"], folder, name)
    if "family" in columns:
        columns["domain"] = columns["family"]
    for label in ("label", "action"):
        if label in columns:
            columns["label_name"] = columns[label]
            columns["label"], class_names = encode_labels(columns[label].values.to_pylist())
            break
    else:
        class_names = []
    return Records(_card(name, folder, columns, len(class_names)), columns, class_names)


def _borrowed(keys: Sequence[str], folder: Path, name: str) -> Joined:
    """The pictures of `emblems` under these keys."""
    row_of, pictures = _lender(folder)
    missing = [k for k in keys if k not in row_of]
    if missing:
        raise BadData(f"{name} refers to pictures that {LENDER} lacks: {missing[:3]} ({len(missing)} in all)")
    return Joined(pictures, np.array([row_of[k] for k in keys]))


@cache
def _lender(folder: Path) -> tuple[dict[str, int], LazyColumn]:
    """({key: row}, pictures) of `emblems`, shared by all views."""
    columns = table_columns([folder / f"{LENDER}.parquet"])
    keys, pictures = columns["key"], columns["image"]
    assert isinstance(keys, ArrowColumn) and isinstance(pictures, LazyColumn)
    return {k: i for i, k in enumerate(keys.values.to_pylist())}, pictures


def _card(name: str, folder: Path, columns: dict[str, Sequence], classes: int) -> DatasetCard:
    """The card as a value; without one in `cards.json`, what can be counted."""
    said = read_cards(folder).get(name)
    if said is not None:
        known = {f.name for f in fields(DatasetCard)}
        return DatasetCard(**{**{k: v for k, v in said.items() if k in known}, "classes": classes})
    splits = columns["split"].values.value_counts().to_pylist() if "split" in columns else []  # type: ignore
    sizes = {s["values"]: s["counts"] for s in splits} or {"all": len(columns["key"])}
    task = "classification" if classes else "image-text"
    return DatasetCard(name=name, title=name, task=task, classes=classes, sizes=sizes)
