"""`backgrounds`: small crops of photographs without things in them, onto which scenes are composed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from . import tables
from .packages import PACKAGES, unpacked
from .raster import to_webp
from .splits import share

SIDE = 128  # pixels, width and height of a crop
CROPS = 30  # of each photograph
QUALITY = 80
COLUMNS = ("key", "image", "family", "author", "licence", "source", "split")
# Photographs that show no object class; EveningGlow (boats), Kite, ColorfulCups and FallenLeaf show one.
PHOTOGRAPHS = {
    "BytheWater": "test",
    "ColdRipple": "train",
    "DarkestHour": "train",
    "Grey": "train",
    "OneStandsOut": "train",
    "Path": "test",
    "summer_1am": "train",
}
LICENCES = {"LGPLv3": "LGPL-3.0-only", "CC-BY-SA-4.0": "CC-BY-SA-4.0"}


def build(out: Path, cache: Path) -> None:
    """Write `backgrounds.parquet`."""
    tables.write(out / "backgrounds.parquet", list(rows(cache)), COLUMNS)


def rows(cache: Path) -> Iterator[dict[str, Any]]:
    """One row for each crop; the crops of one photograph are all in one split."""
    root = unpacked("wallpapers", cache) / "usr" / "share" / "wallpapers"
    for name, split in PHOTOGRAPHS.items():
        about = json.loads((root / name / "metadata.json").read_text("utf-8"))["KPlugin"]
        (path,) = (root / name / "contents" / "images").glob("2560x1600.*")
        picture = Image.open(path).convert("RGB")
        for number in range(CROPS):
            box = crop_box(name, number, *picture.size)
            image = picture.crop(box).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            yield {
                "key": f"wallpaper/{name}/{number:02d}",
                "image": to_webp(image, QUALITY),
                "family": name,
                "author": about["Authors"][0]["Name"],
                "licence": LICENCES[about["License"]],
                "source": PACKAGES["wallpapers"].source,
                "split": split,
            }


def crop_box(name: str, number: int, width: int, height: int) -> tuple[int, int, int, int]:
    """A square (left, top, right, bottom) in pixels; side and place depend on name and number only."""
    sides = (height // 4, height // 2, 3 * height // 4, height)
    side = sides[number % len(sides)]
    left = int(share(f"{name}/{number}", "left") * (width - side + 1))
    top = int(share(f"{name}/{number}", "top") * (height - side + 1))
    return left, top, left + side, top + side
