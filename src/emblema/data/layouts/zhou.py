"""CoOp's fixed splits: `split_zhou_NAME.json`, three lists of (path, label, class name), beside a folder of pictures.

Classes are ordered by their label in the file, and records as the file lists them, as few-shot draws depend on it.
Source: Zhou et al., arXiv 2109.01134; https://github.com/KaiyangZhou/CoOp, DATASETS.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from emblema.core.errors import BadData
from emblema.data.datasets import Skip
from emblema.data.image_folder import empty_file
from emblema.data.layouts import Found, Needs, Place
from emblema.data.naming import mend

SPLITS = ("train", "val", "test")


def needs(images: str, file: str) -> Needs:
    return {"": (file,) if images == "." else (file, images)}


def read(place: Place, images: str, file: str) -> Found:
    path = place.root / file
    try:
        data = json.loads(path.read_bytes())
        triples = {s: [(str(where), int(label), str(name)) for where, label, name in data[s]] for s in SPLITS}
    except (ValueError, TypeError, KeyError) as error:
        raise BadData(
            f"{path} is no split file ({error!r}): expected an object with train, val and test, "
            "each a list of [path, label, class name]"
        ) from None
    classes: dict[int, str] = {}
    for split, rows in triples.items():
        for where, label, name in rows:
            if classes.setdefault(label, name) != name:
                raise BadData(f"{path}: label {label} is {classes[label]!r} and, for {where} of {split}, {name!r}")
    if sorted(classes) != list(range(len(classes))):
        gap = next(i for i in range(len(classes)) if i not in classes)
        raise BadData(f"{path}: labels do not count from 0 without gaps; {gap} is missing")
    folder = place.path(images)

    def items() -> Iterator[dict[str, Any] | Skip]:
        for split in filter(place.wants, SPLITS):
            for where, label, _ in triples[split]:
                yield empty_file(folder / where, where) or {
                    "key": where, "image": folder / where, "label": label, "split": split,
                }  # fmt: skip

    return Found(items(), [mend(classes[i]) for i in range(len(classes))])
