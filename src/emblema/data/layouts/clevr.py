"""CLEVR: pictures and scenes; the label is the number of objects, 3 to 10, as in VTAB's counting task.

Source: Johnson et al., arXiv 1612.06890. Its val split has public scenes, so it is the test split here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from emblema.core.errors import BadData
from emblema.data.datasets import Skip
from emblema.data.image_folder import empty_file
from emblema.data.layouts import Found, Needs, Place

PARTS = {"train": "train", "test": "val"}


def needs() -> Needs:
    both = {s: (f"scenes/CLEVR_{p}_scenes.json", f"images/{p}") for s, p in PARTS.items()}
    return {"": both["test"], "train": both["train"]}


def read(place: Place) -> Found:
    def items() -> Iterator[dict[str, Any] | Skip]:
        for split, part in PARTS.items():
            path = place.root / "scenes" / f"CLEVR_{part}_scenes.json"
            if not place.wants(split) or not path.exists():
                continue
            for scene in json.loads(path.read_bytes())["scenes"]:
                name, count = scene["image_filename"], len(scene["objects"])
                if not 3 <= count <= 10:
                    raise BadData(f"{path}: {name} has {count} objects; CLEVR has 3 to 10")
                file = place.root / "images" / part / name
                yield empty_file(file, name) or {"key": name, "image": file, "label": count - 3, "split": split}

    return Found(items(), place.names.classes)
