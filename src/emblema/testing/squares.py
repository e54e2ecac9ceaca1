"""Coloured squares with labels, captions, domains and splits: a data set in memory that any tower can learn."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from emblema.core.card import DatasetCard
from emblema.data.datasets import Records

NAMES = ("red square", "green square", "blue square", "yellow square")
COLOURS = ((220, 40, 30), (30, 200, 60), (40, 60, 220), (230, 220, 40))
SPLITS = ("train", "val", "test")


def square(label: int, seed: int, size: int = 32) -> bytes:
    """A noisy square of the class's colour, as PNG."""
    noise = np.random.default_rng(seed).integers(-30, 30, (size, size, 3))
    array = np.full((size, size, 3), COLOURS[label], np.int64) + noise
    file = io.BytesIO()
    Image.fromarray(array.clip(0, 255).astype(np.uint8)).save(file, "png")
    return file.getvalue()


def squares(each: int = 6, size: int = 32) -> Records:
    """`each` pictures a class and split; the last two classes are novel."""
    rows = [(s, c, i) for s in range(3) for c in range(4) for i in range(each)]
    columns = {
        "key": [f"{SPLITS[s]}-{c}-{i}" for s, c, i in rows],
        "image": [square(c, 10000 * s + 1000 * c + i, size) for s, c, i in rows],
        "label": [c for _, c, _ in rows],
        "text": [f"a {NAMES[c]}" for _, c, _ in rows],
        "texts": [(f"{NAMES[c]} number {i}",) for _, c, i in rows],
        "domain": [("noto", "openmoji", "emojione")[i % 3] for *_, i in rows],
        "novel": [c >= 2 for _, c, _ in rows],
        "split": [SPLITS[s] for s, *_ in rows],
    }
    return Records(DatasetCard(name="squares", title="Squares", task="classification", classes=4), columns, NAMES)
