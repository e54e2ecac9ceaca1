"""PatchCamelyon's HDF5 files: `x` [N, 96, 96, 3] and `y` [N, 1, 1, 1], a pair a split, pictures read when asked for.

Source: Veeling et al., arXiv 1806.03962. Extra: files (h5py).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from emblema.core.errors import BadData
from emblema.data.layouts import Found, Needs, Place
from emblema.data.layouts.arrays import extra

FILES = {"train": "train", "val": "valid", "test": "test"}
STEM = "camelyonpatch_level_2_split_{}_{}.h5"


def needs() -> Needs:
    both = lambda part: (STEM.format(part, "x"), STEM.format(part, "y"))
    return {"": both("test"), "train": both("train"), "val": both("valid")}


def read(place: Place) -> Found:
    def items() -> Iterator[dict[str, Any]]:
        for split, part in FILES.items():
            pictures, answers = (place.root / STEM.format(part, kind) for kind in "xy")
            if place.wants(split) and answers.exists():
                labels, count = _open(answers)["y"][:].reshape(-1), len(_open(pictures)["x"])
                if count != len(labels):
                    raise BadData(f"{pictures} has {count} pictures, {answers} has {len(labels)} labels")
                for i, label in enumerate(labels):
                    yield {"key": f"{split}/{i}", "image": (pictures, i), "label": int(label), "split": split}

    return Found(items(), place.names.classes, {"image": Rows})


class Rows(Sequence):
    """Pictures of `x` in HDF5 files; a copy in another process opens the files again."""

    def __init__(self, places: Sequence[tuple[Path, int]]):
        self.places = places
        self._files, self._lock = {}, threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"places": self.places}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["places"])

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, row):
        path, number = self.places[row]
        with self._lock:
            if path not in self._files:
                self._files[path] = _open(path)
            return Image.fromarray(self._files[path]["x"][number])


def _open(path: Path) -> Any:
    h5py = extra("h5py", path)
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise BadData(f"{path} is no HDF5 file, or still compressed (gunzip it): {error}") from None
