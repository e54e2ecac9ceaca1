"""LVIS v1: `lvis_v1_val.json` over the pictures of COCO 2017, which its addresses name by folder.

Labels are federated: `negative` are classes known to be absent from a picture, `not_exhaustive` those of which not
all instances are marked; all others are unknown there. Source: Gupta et al., arXiv 1908.03195.
"""

from __future__ import annotations

import json
from pathlib import Path

from emblema.data.coco import read_coco
from emblema.data.layouts import Found, Needs, Place
from emblema.data.layouts.joined import found_in

FILES = {s: f"lvis_v1_{p}.json|annotations/lvis_v1_{p}.json" for s, p in (("train", "train"), ("test", "val"))}
PICTURES = "val2017|images/val2017|coco/val2017"


def needs() -> Needs:
    return {"": (FILES["test"], PICTURES), "train": (FILES["train"],)}


def read(place: Place) -> Found:
    pictures = place.path(PICTURES).parent
    files = {s: place.path(f) for s, f in FILES.items() if place.wants(s)}
    parts = [(s, read_coco(f, images=pictures)) for s, f in files.items() if f.exists()]
    return found_in(parts, parts[0][1].class_names if parts else ())


def frequencies(path: Path) -> list[str]:
    """ "r", "c" or "f" for each class in the order of the category ids: rare, common, frequent in training."""
    categories = json.loads(path.read_bytes())["categories"]
    return [c["frequency"] for c in sorted(categories, key=lambda c: c["id"])]
