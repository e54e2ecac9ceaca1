"""A set of ODinW: `train`, `valid` and `test` with pictures and `_annotations.coco.json` each."""

from __future__ import annotations

from emblema.data.coco import read_coco
from emblema.data.layouts import Found, Needs, Place
from emblema.data.layouts.joined import found_in

FOLDERS = {"train": "train", "val": "valid", "test": "test"}
NOTES = "{0}/_annotations.coco.json|{0}/annotations_without_background.json"


def needs() -> Needs:
    return {"" if s == "test" else s: (NOTES.format(f), f) for s, f in FOLDERS.items()}


def read(place: Place) -> Found:
    wanted = [(s, f) for s, f in FOLDERS.items() if place.wants(s) and (place.root / f).is_dir()]
    parts = [(s, read_coco(place.path(NOTES.format(f)), images=place.root / f)) for s, f in wanted]
    return found_in(parts, parts[0][1].class_names if parts else ())
