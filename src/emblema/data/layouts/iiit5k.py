"""IIIT5K: words cut from photographs, with a box for each character in `trainCharBound.mat` and `testCharBound.mat`.

Source: Mishra, Alahari and Jawahar, 2012. The survey counts 36 classes, the letters and digits, so a record here is a
character cut from its word; its counts of pictures are those of the words. Extra: files (SciPy).
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from emblema.core.errors import BadData
from emblema.data.datasets import Skip
from emblema.data.image_folder import empty_file
from emblema.data.layouts import Found, Needs, Place
from emblema.data.layouts.arrays import mat
from emblema.data.pictures import open_picture

CHARACTERS = string.digits + string.ascii_uppercase


def needs() -> Needs:
    return {part: (f"{part}CharBound.mat", part) for part in ("train", "test")} | {"": ("testCharBound.mat",)}


def read(place: Place) -> Found:
    def items() -> Iterator[dict[str, Any] | Skip]:
        for split in filter(place.wants, ("train", "test")):
            file = place.root / f"{split}CharBound.mat"
            if not file.exists():
                continue
            words = mat(file).get(f"{split}CharBound")
            if words is None:
                raise BadData(f"{file} holds no {split}CharBound")
            for word in np.atleast_1d(words):
                name, characters = str(word.ImgName), str(word.chars)
                image, boxes = place.root / name, np.atleast_2d(word.charBB)
                if len(boxes) != len(characters):
                    yield Skip(name, "broken row", f"{len(boxes)} boxes for {len(characters)} characters")
                    continue
                if problem := empty_file(image, name):
                    yield problem
                    continue
                for i, (character, box) in enumerate(zip(characters.upper(), boxes)):
                    if character in CHARACTERS:
                        yield {
                            "key": f"{name}#{i}", "image": (image, tuple(int(v) for v in box)),
                            "label": CHARACTERS.index(character), "split": split,
                        }  # fmt: skip

    return Found(items(), list(CHARACTERS), {"image": Cut})


class Cut(Sequence):
    """(file, (x, y, width, height)) as the picture inside the box, cut when it is asked for."""

    def __init__(self, rows: Sequence[tuple[Any, tuple[int, int, int, int]]]):
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row):
        file, (x, y, width, height) = self.rows[row]
        whole = open_picture(file)
        left, top = max(x - 1, 0), max(y - 1, 0)  # MATLAB counts from 1
        return whole.crop((left, top, max(left + 1, left + width), max(top + 1, top + height)))
