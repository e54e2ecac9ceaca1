"""`emblem-photos`: real photographs with names. For evaluation only; no training set reads them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from . import rcc, tables
from .packages import PACKAGES, unpacked
from .photo_labels import LABELS, LEFT_OUT
from .raster import to_webp

SIDE = 160  # pixels, longest side
QUALITY = 80
COLUMNS = ("key", "image", "text", "label", "group", "author", "licence", "source", "split")
PREFIX = "gcompris/src/activities/"
LICENCES = {
    "public domain": "LicenseRef-Public-Domain",
    "cc by sa 4.0": "CC-BY-SA-4.0",
    "cc0 1.0": "CC0-1.0",
    "cc by 2.0": "CC-BY-2.0",
    "cc by 3.0": "CC-BY-3.0",
    "cc by sa 3.0": "CC-BY-SA-3.0",
    "cc by 4.0": "CC-BY-4.0",
    "cc by sa 2.0": "CC-BY-SA-2.0",
}


def build(out: Path, cache: Path) -> None:
    """Write `emblem-photos.parquet`."""
    tables.write(out / "emblem-photos.parquet", list(rows(cache)), COLUMNS)


def rows(cache: Path) -> Iterator[dict[str, Any]]:
    """One row for each photograph that has a label."""
    folder = unpacked("gcompris", cache) / "usr" / "share" / "gcompris-qt" / "rcc"
    activities = {path.split("/")[0] for paths in LABELS.values() for path in paths}
    for activity in sorted(activities):
        files = dict(rcc.files((folder / f"{activity}.rcc").read_bytes()))
        rights = _all_rights(files)
        for path in sorted(files):
            name = path.removeprefix(PREFIX).removesuffix(".webp")
            found = label_of(name) if path.endswith(".webp") else None
            if found is not None:
                yield _row(name, files[path], *found, *rights[name])


def label_of(name: str) -> tuple[str, str] | None:
    """(group, class) of a photograph by its path; an exact path wins over a `*`; None if not listed."""
    if name in LEFT_OUT:
        return None
    for exact in (True, False):
        for group, labels in LABELS.items():
            for path, label in labels.items():
                if name == path if exact else path.endswith("*") and name.startswith(path[:-1]):
                    return group, label
    return None


def _row(name: str, data: bytes, group: str, label: str, licence: str, author: str) -> dict[str, Any]:
    """The row of one photograph: RGB on white, at most `SIDE` pixels long."""
    if licence not in LICENCES.values():
        raise ValueError(f"{name} may not be shipped: its licence is {licence}")
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    paper = Image.new("RGBA", picture.size, "white")
    paper.alpha_composite(picture)
    image = paper.convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    short = name.replace("/resource", "").replace("/images", "").replace("_background", "")
    return {
        "key": f"gcompris/{short}",
        "image": to_webp(image, QUALITY),
        "text": label,
        "label": label,
        "group": group,
        "author": author,
        "licence": licence,
        "source": PACKAGES["gcompris"].source,
        "split": "test",
    }


def _all_rights(files: dict[str, bytes]) -> dict[str, tuple[str, str]]:
    """Path without ending -> (SPDX licence, author), from the README files beside the pictures."""
    found = {}
    for path, data in files.items():
        if path.endswith("/README"):
            folder = path.removeprefix(PREFIX).removesuffix("README")
            for names, licence, author in read_rights(data.decode("utf-8", "replace")):
                found.update({folder + name.removesuffix(".webp"): (licence, author) for name in names})
    return found


def read_rights(text: str) -> Iterator[tuple[list[str], str, str]]:
    """(file names, SPDX licence, author) of each block of a README; unknown licences stay as they are."""
    for block in re.split(r"\n\s*\n", text):
        names = re.findall(r"[\w/.()-]+\.webp", block)
        licence = re.search(r"^Licen[cs]e: *(.+?)\s*$", block, re.M)
        author = re.search(r"^Copyright: *(.+?)\s*$", block, re.M)
        if names and licence:
            words = re.sub(r"[-\s]+", " ", licence.group(1).lower())
            yield names, LICENCES.get(words, licence.group(1)), author.group(1) if author else ""
