"""Karpathy's splits of Flickr30k and COCO: one JSON with file names, splits and five sentences a picture.

"restval" pictures of COCO are training pictures, as is usual. Source: Karpathy and Fei-Fei, arXiv 1412.2306.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from emblema.core.errors import BadData
from emblema.data.datasets import Skip
from emblema.data.image_folder import empty_file
from emblema.data.layouts import Found, Needs, Place

SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def needs(file: str, images: str) -> Needs:
    return {"": (file,) if images == "." else (file, images)}


def read(place: Place, file: str, images: str) -> Found:
    path = place.path(file)
    try:
        rows = json.loads(path.read_bytes())["images"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadData(f"{path} is none of Karpathy's split files ({error!r}): expected an object with images") from None
    folders = [place.path(images), place.root / "images"]

    def items() -> Iterator[dict[str, Any] | Skip]:
        for row in rows:
            split = SPLITS.get(row["split"])
            if split is None:
                raise BadData(f"{path}: {row['filename']} is of split {row['split']!r}; known: {', '.join(SPLITS)}")
            if not place.wants(split):
                continue
            name = "/".join(p for p in (row.get("filepath"), row["filename"]) if p)
            picture = next((f / name for f in folders if (f / name).exists()), folders[0] / name)
            captions = [s["raw"].strip() for s in row["sentences"] if s["raw"].strip()]
            if problem := empty_file(picture, name):
                yield problem
            elif not captions:
                yield Skip(name, "empty caption", f"{path} has no sentence for it")
            else:
                yield {"key": name, "image": picture, "text": captions[0], "texts": tuple(captions[1:]), "split": split}

    return Found(items())
