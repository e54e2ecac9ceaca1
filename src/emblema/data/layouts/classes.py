"""A folder a class, in a folder a split; or one folder of class folders, split here 50/20/30 as CoOp splits such sets.

`ids` says what the folders are called: "imagenet", "imagenet-a" or "imagenet-r" are WordNet ids, "index" are numbers
0 to 999 (ImageNet-V2). Every split must have the same class folders, and none may be empty.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from emblema.core.errors import BadData
from emblema.data.catalog import PICTURES
from emblema.data.datasets import Skip
from emblema.data.image_folder import empty_file
from emblema.data.layouts import Found, Needs, Place
from emblema.data.layouts.clips import VIDEOS, Videos
from emblema.data.naming import imagenet

SEED = 1  # of the splits that are drawn here


def needs(splits: Mapping[str, str], need: str = "", mirror: bool = False, **_: Any) -> Needs:
    """All splits, or only `need` with the others as they come; a `mirror` is told by class folders in it."""
    if mirror:
        splits = {s: "|".join(f"{one}/*/" for one in path.split("|")) for s, path in splits.items()}
    if not need:
        return {"": tuple(splits.values())}
    return {"": (splits[need],)} | {s: (path,) for s, path in splits.items() if s != need}


def read(
    place: Place,
    splits: Mapping[str, str],
    ids: str = "",
    draw: bool = False,
    numbered: bool = False,
    drop: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    clips: str = "",
    need: str = "",
    mirror: bool = False,
) -> Found:
    suffixes = VIDEOS if clips else PICTURES
    roots = {split: place.path(path) for split, path in splits.items()}
    trees = {s: _tree(root, drop) for s, root in roots.items() if root.is_dir()}
    folders = sorted({c for tree in trees.values() for c in tree})
    if not folders:
        raise BadData(f"{place.name}: no class folders in {', '.join(map(str, roots.values()))}")
    label, classes = _labels(place, folders, ids, rename or {})

    def items() -> Iterator[dict[str, Any] | Skip]:
        for split, tree in trees.items():
            if split and not place.wants(split):
                continue
            for folder in folders:
                where = f"{splits[split].split('|')[0]}/{folder}"
                if folder not in tree:
                    other = next(r / folder for s, r in roots.items() if folder in trees.get(s, ()))
                    yield Skip(where, "missing folder", f"{roots[split] / folder} is expected: {other} is there")
                    continue
                files = [f for f in tree[folder] if f.suffix.lower() in suffixes]
                yield from _oddities(roots[split] / folder, where, tree[folder], files, numbered)
                for file, part in zip(files, _drawn(files, folder) if draw else [split] * len(files)):
                    key = file.relative_to(roots[split]).as_posix()
                    if place.wants(part):
                        yield empty_file(file, key) or {
                            "key": key,
                            "image": file,
                            "label": label[folder],
                            "split": part,
                        }

    notes = [f"no split file: split here 50/20/30 a class, seed {SEED}; not CoOp's split"] if draw else []
    return Found(items(), classes, {"image": Videos} if clips else {}, notes)


def _tree(root: Path, drop: Sequence[str]) -> dict[str, list[Path]]:
    """{class folder: its files, sorted}; hidden ones are passed over."""
    found: dict[str, list[Path]] = {}
    for entry in sorted(os.scandir(root), key=lambda e: e.name):
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in drop:
            found[entry.name] = sorted(Path(f.path) for f in os.scandir(entry) if not f.name.startswith("."))
    return found


def _labels(place: Place, folders: list[str], ids: str, rename: Mapping[str, str]) -> tuple[dict[str, int], list[str]]:
    """({folder: label}, class names); a part of ImageNet's folders keeps the numbers of the whole."""
    if ids:
        known = imagenet(ids)
        order = {str(i): i for i in range(len(known))} if ids == "index" else {w: i for i, w in enumerate(known)}
        if unknown := [f for f in folders if f not in order]:
            called = "the numbers 0 to 999" if ids == "index" else f"{len(known)} WordNet ids, as {next(iter(known))}"
            raise BadData(
                f"{place.root}: {unknown[0]!r} is no class folder of {place.name} ({len(unknown)} such); expected "
                f"{called}"
            )
        return order, list(known.values())
    if known := place.names.folders:
        order = {f: i for i, f in enumerate(known)}
        if unknown := [f for f in folders if f not in order]:
            raise BadData(f"{place.root}: {unknown[0]!r} is no class folder of {place.name}; as {known[:3]}")
        return order, list(place.names.classes)
    return {f: i for i, f in enumerate(folders)}, [rename.get(f) or place.names.of(f) for f in folders]


def _oddities(folder: Path, where: str, all_files: list[Path], files: list[Path], numbered: bool) -> Iterator[Skip]:
    """An empty class, files that are no pictures, and gaps where a set is known to be numbered without."""
    for file in all_files:
        if file not in files and file.name not in ("README.txt", "Thumbs.db"):
            yield Skip(f"{where}/{file.name}", "no picture", f"{file} is no picture by its name: was it renamed?")
    if not files:
        yield Skip(where, "empty folder", f"{folder} holds no picture")
    elif numbered:
        digits = {int(m[2]): m for f in files if (m := re.match(r"(.*?)(\d+)(\.\w+)$", f.name))}
        for number in sorted(set(range(1, max(digits, default=0))) - digits.keys()):
            before, shape, suffix = next(iter(digits.values())).groups()
            width = len(shape) if shape.startswith("0") else 0
            name = f"{before}{number:0{width}d}{suffix}"
            yield Skip(f"{where}/{name}", "missing file", f"no file {folder / name}, though later numbers are there")


def _drawn(files: list[Path], folder: str) -> list[str]:
    """A split for each file of a class: half train, a fifth val, the rest test (CoOp's `read_and_split_data`)."""
    train, val = round(len(files) * 0.5), round(len(files) * 0.2)
    parts = ["train"] * train + ["val"] * val + ["test"] * (len(files) - train - val)
    random.Random(f"{SEED}/{folder}").shuffle(parts)
    return parts
