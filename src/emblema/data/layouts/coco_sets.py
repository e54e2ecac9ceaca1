"""COCO 2014 and 2017 as published: `annotations/instances_val2017.json` or `captions_...`, pictures in `val2017`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from emblema.data.coco import read_coco
from emblema.data.layouts import Found, Needs, Place
from emblema.data.layouts.joined import LATER, items_of


def needs(splits: Mapping[str, str], what: Sequence[str]) -> Needs:
    files = {s: tuple(f"annotations/{w}_{part}.json" for w in what) for s, part in splits.items()}
    return {s if s != "test" else "": (*files[s], f"{part}|images/{part}") for s, part in splits.items()}


def read(place: Place, splits: Mapping[str, str], what: Sequence[str]) -> Found:
    wanted = {s: part for s, part in splits.items() if place.wants(s)}
    files = {s: place.root / "annotations" / f"{what[0]}_{part}.json" for s, part in wanted.items()}
    parts = [
        (s, read_coco(f, images=place.path(f"{splits[s]}|images/{splits[s]}"))) for s, f in files.items() if f.exists()
    ]
    return Found(items_of(parts), parts[0][1].class_names if parts else (), LATER)
