"""MNIST's idx files, plain or gzipped: a magic number that tells type and axes, the sizes, then the bytes.

Source: LeCun, Cortes and Burges, 1998.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from emblema.core.errors import BadData
from emblema.data.layouts import Found, Needs, Place
from emblema.data.layouts.arrays import Pixels


def _either(stem: str) -> str:
    """How a file is called on different mirrors."""
    head, kind = stem.rsplit("-", 1)
    return f"{stem}-ubyte|{stem}-ubyte.gz|{head}.{kind}-ubyte"


PARTS = {
    s: (_either(f"{p}-images-idx3"), _either(f"{p}-labels-idx1")) for s, p in (("train", "train"), ("test", "t10k"))
}


def needs() -> Needs:
    return {"": tuple(name for pair in PARTS.values() for name in pair)}


def read(place: Place) -> Found:
    def items() -> Iterator[dict[str, Any]]:
        for split in filter(place.wants, PARTS):
            files = [place.path(name) for name in PARTS[split]]
            pictures, labels = (read_idx(f) for f in files)
            if len(pictures) != len(labels):
                raise BadData(f"{files[0]} has {len(pictures)} pictures, {files[1]} has {len(labels)} labels")
            for i, (picture, label) in enumerate(zip(pictures, labels)):
                yield {"key": f"{split}/{i}", "image": picture, "label": int(label), "split": split}

    return Found(items(), place.names.classes, {"image": Pixels})


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of an idx file. Raises `BadData` when it is none, or shorter than it says."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise BadData(f"{path} cannot be unpacked: {error}") from None
    if len(data) < 4 or data[:3] != b"\0\0\x08" or not 1 <= data[3] <= 4:
        raise BadData(f"{path} is no idx file of bytes: it begins with {data[:4].hex()}, expected 000008 and its axes")
    axes = data[3]
    shape = np.frombuffer(data, ">u4", axes, 4).astype(int)
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * axes)
    if len(body) != shape.prod():
        raise BadData(
            f"{path} says {'x'.join(map(str, shape))} but holds {len(body)} bytes: it is cut short or damaged"
        )
    return body.reshape(shape)
