"""COCO 2014 and 2017 as published: `annotations/instances_val2017.json`, pictures in `val2017`.

Captions (`captions_val2017.json`) join the boxes where both are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from emblema.data.coco import read_coco
from emblema.data.datasets import Records
from emblema.data.layouts import Found, Needs, Place
from emblema.data.layouts.joined import found_in


def needs(splits: Mapping[str, str], what: str) -> Needs:
    both = {s: (f"annotations/{what}_{part}.json", f"{part}|images/{part}") for s, part in splits.items()}
    return {"": both["test"], "train": both["train"]}


def read(place: Place, splits: Mapping[str, str], what: str) -> Found:
    parts = []
    for split, part in splits.items():
        file = place.root / "annotations" / f"{what}_{part}.json"
        if place.wants(split) and file.exists():
            pictures = place.path(f"{part}|images/{part}")
            captions = file.with_name(f"captions_{part}.json")
            records = read_coco(file, pictures)
            if what != "captions" and captions.exists():
                _add_captions(records, captions, pictures)
            parts.append((split, records))
    return found_in(parts, parts[0][1].class_names if parts else ())


def _add_captions(records: Records, file: Path, pictures: Path) -> None:
    found = read_coco(file, pictures)
    said = dict(zip(found.keys, zip(found.column("text"), found.columns.get("texts") or [None] * len(found))))
    for n, name in enumerate(("text", "texts")):
        records.columns[name] = [said[k][n] if k in said else None for k in records.keys]
