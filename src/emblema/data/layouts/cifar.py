"""CIFAR-10 and CIFAR-100 for Python: pickles of arrays, read by an unpickler that makes arrays and nothing else.

Source: Krizhevsky, 2009, https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from emblema.core.errors import BadData
from emblema.data.layouts import Found, Needs, Place
from emblema.data.layouts.arrays import Pixels
from emblema.data.naming import mend

FILES = {
    10: ({"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}, "batches.meta"),
    100: ({"train": ["train"], "test": ["test"]}, "meta"),
}
KEYS = {10: (b"labels", b"label_names"), 100: (b"fine_labels", b"fine_label_names")}
# what pickles of arrays name, by any version of NumPy and Python
ALLOWED = {
    ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"), ("numpy.core.numeric", "_frombuffer"),
}  # fmt: skip


def needs(classes: int) -> Needs:
    splits, meta = FILES[classes]
    return {"": (*splits["train"], *splits["test"], meta)}


def read(place: Place, classes: int) -> Found:
    splits, meta = FILES[classes]
    label_key, names_key = KEYS[classes]
    names = [n.decode() for n in _load(place.root / meta, names_key)[names_key]]

    def items() -> Iterator[dict[str, Any]]:
        for split in filter(place.wants, splits):
            for name in splits[split]:
                batch = _load(place.root / name, b"data", label_key)
                pictures = np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                if len(pictures) != len(batch[label_key]):
                    raise BadData(f"{place.root / name}: {len(pictures)} pictures but {len(batch[label_key])} labels")
                for i, (picture, label) in enumerate(zip(pictures, batch[label_key])):
                    yield {"key": f"{name}/{i}", "image": picture, "label": int(label), "split": split}

    return Found(items(), [mend(n) for n in names], {"image": Pixels})


class _Arrays(pickle.Unpickler):
    """Makes containers, texts, numbers and arrays; anything else in a pickle is refused before it runs."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise BadData(f"the pickle asks for {module}.{name}, which no CIFAR file holds: it was not loaded")
        if name == "encode":
            return _latin1
        return super().find_class(module, name)


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 writes bytes into old pickles."""
    return text.encode("latin1")


def _load(path: Path, *keys: bytes) -> dict[bytes, Any]:
    """The dictionary of one file, its keys as bytes. Raises `BadData` when it is none, or would run code."""
    try:
        with path.open("rb") as file:
            data = _Arrays(file, encoding="bytes").load()
    except BadData as error:
        raise BadData(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle fails in any way it likes
        raise BadData(f"{path} is damaged or no pickle: {error!r}") from None
    data = {k.encode() if isinstance(k, str) else k: v for k, v in data.items()} if isinstance(data, dict) else {}
    if missing := [k.decode() for k in keys if k not in data]:
        raise BadData(f"{path} lacks {', '.join(missing)}: it is no CIFAR file")
    return data
