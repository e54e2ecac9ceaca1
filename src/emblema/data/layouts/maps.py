"""Pictures with label maps of the same name in another folder: Cityscapes, ADE20k, COCO-Stuff.

A map has a number a pixel; numbers that are no class become 255, which is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from emblema.core.boxes import Masks
from emblema.core.errors import BadData
from emblema.data.datasets import Skip
from emblema.data.image_folder import empty_file
from emblema.data.layouts import Found, Needs, Place

IGNORED = 255


class LabelMaps(Sequence):
    """Label maps as `Masks`, read when they are asked for; `classes[number]` is the class of a number in the files."""

    def __init__(self, files: Sequence[Path | None], classes: np.ndarray):
        self.files, self.classes = files, classes

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row):
        file = self.files[row]
        return None if file is None else read_map(file, self.classes)


def read_map(file: Path, classes: np.ndarray) -> Masks:
    """A label map, int64 [H, W]. Raises `BadData` for a picture in colours, which does not say its numbers."""
    with Image.open(file) as image:
        if image.mode not in ("L", "P", "I", "I;16"):
            raise BadData(f"{file} is a picture in colours ({image.mode}); expected a map with a class number a pixel")
        numbers = np.asarray(image)  # [H, W]
    return Masks(torch.from_numpy(classes[numbers.astype(np.int64)]))


def classes_by_number(ids: Sequence[int]) -> np.ndarray:
    """int64 [65536]: the position of each number in `ids`, 255 for all others."""
    table = np.full(65536, IGNORED, dtype=np.int64)
    table[list(ids)] = np.arange(len(ids))
    return table


def needs(splits: Mapping[str, str], images: str, masks: str, classes: str = "", **_: Any) -> Needs:
    both = {s: (images.format(split=p), masks.format(split=p)) for s, p in splits.items()}
    return {"": (*([classes] if classes else []), *both["test"]), "train": both["train"]}


def read(
    place: Place, splits: Mapping[str, str], images: str, masks: str, ends: tuple[str, str], first: int = 0,
    classes: str = "",
) -> Found:  # fmt: skip
    names = _object_names(place.root / classes) if classes else list(place.names.classes)
    numbers = classes_by_number(place.names.ids or range(first, first + len(names)))

    def items() -> Iterator[dict[str, Any] | Skip]:
        for split, part in splits.items():
            folder, maps = place.path(images.format(split=part)), place.path(masks.format(split=part))
            if not place.wants(split) or not (folder.is_dir() or maps.is_dir()):
                continue
            stems = sorted({*_stems(folder, ends[0]), *_stems(maps, ends[1])})
            for stem in stems:
                picture, mask, key = folder / f"{stem}{ends[0]}", maps / f"{stem}{ends[1]}", f"{part}/{stem}{ends[0]}"
                problem = empty_file(picture, key) or empty_file(mask, f"{part}/{stem}{ends[1]}")
                yield problem or {"key": key, "image": picture, "mask": mask, "split": split}

    return Found(items(), names, {"mask": lambda files: LabelMaps(files, numbers)})


def _stems(folder: Path, end: str) -> list[str]:
    return [f.relative_to(folder).as_posix().removesuffix(end) for f in folder.rglob(f"*{end}")]


def _object_names(path: Path) -> list[str]:
    """The names of ADE20k's table, in the order of their numbers, without their synonyms."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not rows or rows[0][0] != "Idx" or rows[0][-1] != "Name":
        raise BadData(f"{path} is not ADE20k's table: it begins {rows[:1]}, expected columns from Idx to Name")
    return [row[-1].split(",")[0].split(";")[0].strip() for row in rows[1:]]
