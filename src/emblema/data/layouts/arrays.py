"""Pictures kept as numbers: a column that turns rows of arrays into pictures, and the extras that read such files."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from emblema.core.errors import BadData


class Pixels(Sequence):
    """uint8 arrays [H, W] or [H, W, 3] as pictures, made when they are asked for."""

    def __init__(self, arrays: Sequence[np.ndarray]):
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, row):
        return Image.fromarray(np.ascontiguousarray(self.arrays[row]))


def extra(library: str, file: Path) -> Any:
    """A library of the extra "files". Raises `BadData` that says how to install it."""
    try:
        return import_module(library)
    except ImportError:
        name = library.split(".")[0]
        raise BadData(f"{file} is read with {name}: pip install 'emblema[files]'") from None


def mat(file: Path) -> dict[str, Any]:
    """The variables of a MATLAB file. Raises `BadData` when it is none."""
    io = extra("scipy.io", file)
    try:
        return io.loadmat(file, squeeze_me=True, struct_as_record=False)
    except (ValueError, NotImplementedError, OSError, TypeError) as error:
        raise BadData(f"{file} is no MATLAB file that can be read: {error}") from None
