"""Folders of pictures (or videos): `class/picture.jpg`, `split/class/picture.jpg`, or pictures alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from emblema.core.errors import BadData
from emblema.data.catalog import PICTURES
from emblema.data.datasets import SPLITS, OnBroken, Records, Skip, collect
from emblema.data.naming import words_for


def read_image_folder(folder: Path | str, on_broken: OnBroken = "skip", suffixes: Sequence[str] = PICTURES) -> Records:
    """Records of a folder, labelled by the folder that holds each picture; a flat folder gives no labels.

    Top folders named train, val, test (or validation, dev, ...) are splits. A file `classnames.txt`, one name a line
    in the order of the sorted class folders, renames the classes; without it, folders that are all WordNet ids of
    ImageNet-1k are called by its words.
    """
    folder = Path(folder)
    files = pictures_in(folder, suffixes)
    parts = [f.relative_to(folder).parts for f in files]
    split_dirs = {p[0] for p in parts if len(p) > 1 and p[0].lower() in SPLITS}
    in_splits = bool(split_dirs) and all(p[0] in split_dirs for p in parts)
    depth = 1 if in_splits else 0
    classes = sorted({p[depth] for p in parts if len(p) > depth + 1})
    renamed, number = _class_names(folder, classes), {c: i for i, c in enumerate(classes)}

    def items() -> Iterator[dict[str, Any] | Skip]:
        for file, part in zip(files, parts):
            key = "/".join(part)
            if problem := empty_file(file, key):
                yield problem
            elif classes and len(part) <= depth + 1:
                yield Skip(key, "no class", "lies beside the class folders, not in one")
            else:
                label = number[part[depth]] if classes else None
                yield {"key": key, "image": file, "label": label, "split": part[0] if in_splits else None}

    return collect(folder.name, items(), on_broken, [renamed[c] for c in classes] or None)


def pictures_in(folder: Path, suffixes: Sequence[str] = PICTURES) -> list[Path]:
    """All picture (or video) files below a folder, sorted, hidden ones left out."""
    hidden = lambda f: any(part.startswith(".") for part in f.relative_to(folder).parts)
    return sorted(f for f in folder.rglob("*") if f.suffix.lower() in suffixes and not hidden(f))


def empty_file(file: Path, key: str) -> Skip | None:
    """What is wrong with a file that can be told without opening it: it is missing, or empty."""
    try:
        return None if file.stat().st_size else Skip(key, "zero bytes", "the file is empty")
    except FileNotFoundError:
        return Skip(key, "missing file", f"no file {file}")
    except OSError as error:
        return Skip(key, "unreadable file", f"{file}: {error.strerror}")


def _class_names(folder: Path, classes: list[str]) -> dict[str, str]:
    """{class folder: class name}."""
    file = folder / "classnames.txt"
    if not classes or not file.exists():
        return words_for(classes) or {c: c for c in classes}
    names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(names) != len(classes) or len(set(names)) != len(names):
        raise BadData(f"{file} has {len(set(names))} distinct names for {len(classes)} class folders: give each one")
    return dict(zip(classes, names))
