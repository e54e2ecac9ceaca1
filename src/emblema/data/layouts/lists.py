"""A text file a split that lists pictures or clips: DTD, Food-101, Pets, Aircraft, SUN397 and UCF101's own splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from emblema.core.errors import BadData
from emblema.data import naming
from emblema.data.datasets import Skip
from emblema.data.image_folder import empty_file
from emblema.data.layouts import Found, Needs, Place
from emblema.data.layouts.clips import FrameFolders, Videos


def _path(line: str) -> tuple[str, str]:
    """`banded/banded_0002.jpg`, `apple_pie/1005649`, `Archery/v_Archery_g08_c01.avi 3`."""
    where = line.split()[0]
    return where, where.split("/")[0]


def _aircraft(line: str) -> tuple[str, str]:
    """`1025794 707-320`: the name may have spaces."""
    number, _, name = line.partition(" ")
    return number, name


def _pets(line: str) -> tuple[str, str]:
    """`Abyssinian_100 1 1 1`: the breed is what precedes the last underscore."""
    where = line.split()[0]
    return where, where.rsplit("_", 1)[0]


def _sun(line: str) -> tuple[str, str]:
    """`/a/apse/indoor/sun_abc.jpg` is "indoor apse": no first letter, the word of place in front, as in CoOp."""
    where = line.removeprefix("/")
    return where, " ".join(reversed(where.split("/")[1:-1]))


LINES = {"path": _path, "aircraft": _aircraft, "pets": _pets, "sun": _sun}


def needs(lists: Mapping[str, str], images: str, classes: str = "", **_: Any) -> Needs:
    return {"": (*lists.values(), *([images] if images.split("|")[-1] != "." else []), *([classes] if classes else []))}


def read(
    place: Place, lists: Mapping[str, str], images: str, line: str = "path", suffix: str = "", classes: str = "",
    clips: str = "", spaced: bool = False,
) -> Found:  # fmt: skip
    folder = place.path(images)
    rows: list[tuple[str, str, str]] = []  # split, path, class
    for split, file in lists.items():
        path = place.path(file)
        for text in path.read_text(encoding="utf-8-sig").splitlines():
            if text.strip() and not text.startswith("#"):
                where, name = LINES[line](text.strip())
                if not name:
                    raise BadData(f"{path}: the line {text!r} names no class")
                rows.append((split, where, name))
    order = _lines(place.path(classes)) if classes else sorted({name for *_, name in rows})
    number = {name: i for i, name in enumerate(order)}
    if unknown := next((r for r in rows if r[2] not in number), None):
        raise BadData(
            f"{place.path(lists[unknown[0]])}: {unknown[1]} is of class {unknown[2]!r}, which {classes} lacks"
        )

    def items() -> Iterator[dict[str, Any] | Skip]:
        for split, where, name in rows:
            if place.wants(split):
                file = folder / f"{where}{suffix}"
                file = file.with_suffix("") if clips == "frames" else file
                problem = _no_frames(file, where) if clips == "frames" else empty_file(file, where)
                yield problem or {"key": where, "image": file, "label": number[name], "split": split}

    wrap = {"frames": FrameFolders, "video": Videos}.get(clips)
    words = naming.spaced if spaced else naming.mend
    return Found(items(), [words(name) for name in order], {"image": wrap} if wrap else {})


def _lines(path: Path) -> list[str]:
    return [text.strip() for text in path.read_text(encoding="utf-8-sig").splitlines() if text.strip()]


def _no_frames(folder: Path, key: str) -> Skip | None:
    if not folder.is_dir():
        return Skip(key, "missing folder", f"no folder {folder} with the frames of the clip")
    return None if any(folder.iterdir()) else Skip(key, "empty folder", f"{folder} holds no frame")
