"""Every data set by its name or its path: bundled sets first, then whatever lies at the path, told by its layout.

A set of the survey that was brought is `NAME:PATH` (imagenet:/data/imagenet); its path alone does where the files
tell which set they are.

Names and cards are read without importing torch.
"""

from __future__ import annotations

import glob
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emblema.core.errors import BadData, UnknownName
from emblema.data import survey

if TYPE_CHECKING:
    from emblema.data.datasets import OnBroken, Records
    from emblema.data.layouts import Located
    from emblema.data.survey_card import SurveySet

FOLDER = Path(__file__).parent / "bundled"
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
VIDEOS = (".avi", ".mp4", ".mkv", ".webm", ".mov", ".mpg", ".mpeg", ".m4v")
LAYOUTS = {
    "image-folder": "a folder a class, or pictures without labels",
    "video-folder": "a folder of video files a class",
    "sidecar": "pictures with a .txt of the same name",
    "table": "CSV, TSV, JSON or JSONL of pairs",
    "parquet": "parquet of pairs",
    "shards": "WebDataset tar files",
    "coco": "COCO instances or captions",
    "survey": "a data set of the survey as published: emblema list data",
}
PARTS = ("backgrounds", "multilingual")  # bundled, but no set of pictures with words
GENERATED = {
    "emblem-scenes": {
        "name": "emblem-scenes",
        "title": "Composed scenes with relations, boxes and masks",
        "task": "detection",
        "licence": "that of emblems and backgrounds",
        "source": "generated from a seed",
        "trainable": True,
    }
}


@cache
def read_cards(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """{name: card} of the bundled sets, from the `cards.json` that their builder writes; empty when there is none."""
    path = folder / "cards.json"
    if not path.exists():
        return {}
    data = json.loads(path.read_text(encoding="utf-8"))
    return {name: _card(name, said) for name, said in data.get("sets", data).items()}


def _card(name: str, said: dict[str, Any]) -> dict[str, Any]:
    """What `cards.json` says, with the names of `DatasetCard`'s fields added."""
    classes = said.get("classes", ())
    task = said.get("task") or ("action" if "action" in name else "classification" if classes else "image-text")
    ours = {
        "name": name,
        "title": said.get("title", name),
        "task": task,
        "licence": ", ".join(said.get("licences", ())) or "of its owner",
        "source": ", ".join(said.get("sources", ())),
        "classes": len(classes),
        "sizes": dict(said.get("split_rows", {})),
        "sha256": said.get("sha256", ""),
        "trainable": not said.get("evaluation_only", False),
        "notes": tuple(said[k] for k in ("use", "splits") if said.get(k)),
    }
    return {**said, **ours}


def cards(folder: Path | None = None) -> list[dict[str, Any]]:
    """The cards of the bundled and the generated sets, by name; `folder` is another that the builder has filled."""
    found = GENERATED | {n: c for n, c in read_cards(folder or FOLDER).items() if n not in PARTS}
    return [found[name] for name in sorted(found)]


def names(folder: Path | None = None) -> list[str]:
    """What `load` knows by name."""
    return [card["name"] for card in cards(folder)]


def load(
    name_or_path: str | Path,
    split: str | None = None,
    on_broken: OnBroken = "skip",
    verify: bool = False,
    folder: Path | None = None,
) -> Records:
    """The records of a bundled set or of a path, all or one split.

    `on_broken` says what happens to items that cannot be used: left out and listed in `.report`, or refused. Reading
    finds missing and empty files and captions; `verify` decodes every picture beforehand too. `folder` holds bundled
    sets other than the package's own. Raises `UnknownName` for what is neither a name nor a path, and `BadData` for a
    set that cannot be used as asked: evaluation data as a training split, for one.
    """
    name = str(name_or_path)
    if name in GENERATED:
        from emblema.data.scenes import Scenes

        records: Records = Scenes(folder=folder)
    elif name in names(folder):
        from emblema.data.bundled import read_bundled

        records = read_bundled(name, folder)
        if records.card.task == "action":
            from emblema.data.actions import as_clips

            records = as_clips(records)
    else:
        records = read_path(name, on_broken, split)
    if split is not None:
        records = records.split(split)
    if verify:
        from emblema.data.check import only_sound

        records = only_sound(records, on_broken)
    return records


def read_path(path: str | Path, on_broken: OnBroken = "skip", split: str | None = None) -> Records:
    """The records of a file, a folder, shards written as `shard-{000..012}.tar`, or a set of the survey as `NAME:PATH`.

    `split` spares reading the other splits of a set of the survey.
    """
    if found := brought(path):
        from emblema.data.layouts import read

        return read(*found, split, on_broken)
    layout, files = sniff(path)
    if layout == "shards":
        from emblema.data.shards import read_shards

        return read_shards(files, on_broken)
    if layout in ("table", "parquet"):
        from emblema.data.tables import read_tables

        return read_tables(files, on_broken)
    if layout == "coco":
        from emblema.data.coco import read_coco

        return read_coco(files[0], on_broken=on_broken)
    if layout == "sidecar":
        from emblema.data.sidecar import read_sidecar

        return read_sidecar(files[0], on_broken)
    from emblema.data.image_folder import read_image_folder

    return read_image_folder(files[0], on_broken, VIDEOS if layout == "video-folder" else PICTURES)


def brought(path: str | Path) -> tuple[SurveySet, Located] | None:
    """(the survey's set, its layout) of `NAME:PATH`, or of a folder whose files tell which set it is; else None.

    Raises `BadData` for the name of such a set alone: it has to be brought.
    """
    name, colon, place = str(path).partition(":")
    row = survey.find(name)
    if row is not None and (colon or not Path(name).exists()):
        from emblema.data.layouts import locate, tell

        if not row.layouts:
            raise BadData(
                f"{row.title} is listed only: bring its pairs as shards, a table or a folder, and give its path"
            )
        if not place:
            raise BadData(
                f"{row.name} is not bundled: bring it and say where, {row.name}:PATH. Layouts: {'; '.join(tell(row))}"
            )
        return row, locate(row, place)
    if Path(path).is_dir():
        from emblema.data.layouts import recognise

        return recognise(Path(path))
    return None


def sniff(path: str | Path) -> tuple[str, list[Path]]:
    """(layout, files to read) of what lies at a path; the layouts are the keys of `LAYOUTS`.

    Raises `UnknownName` when nothing is there, `BadData` saying what was found when no reader fits.
    """
    files = expand(str(path))
    if not files:
        raise UnknownName("data set or path", str(path), names())
    first = files[0]
    if first.is_dir():
        return _sniff_folder(first)
    suffix = first.suffix.lower()
    if suffix == ".tar":
        return "shards", files
    if suffix == ".parquet":
        return "parquet", files
    if suffix == ".json" and _is_coco(first):
        return "coco", files
    if suffix in TABLES:
        return "table", files
    if first.name.endswith((".tar.gz", ".tgz", ".zip")):
        raise BadData(f"{first} is compressed, so that records cannot be reached singly: unpack it first")
    raise BadData(f"{first}: no reader for {suffix or 'a file without suffix'}. Readable: {', '.join(TABLES)}, .tar")


def expand(pattern: str) -> list[Path]:
    """The files that a path, a `*` pattern or WebDataset's `{000..012}` stands for, those that exist, sorted."""
    if braces := re.search(r"\{(\d+)\.\.(\d+)\}", pattern):
        first, last = braces.groups()
        filled = (f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1))
        files = [Path(pattern[: braces.start()] + n + pattern[braces.end() :]) for n in filled]
        if missing := [f for f in files if not f.exists()]:
            raise BadData(f"{pattern}: {len(missing)} of {len(files)} shards are missing, first {missing[0]}")
        return files
    path = Path(pattern)
    if path.exists():
        return [path]
    return sorted(Path(p) for p in glob.glob(pattern))


def _sniff_folder(folder: Path) -> tuple[str, list[Path]]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    of = lambda *suffixes: [f for f in files if f.suffix.lower() in suffixes]
    pictures = of(*PICTURES)
    if shards := of(".tar"):
        return "shards", shards
    if tables := of(".parquet"):
        return "parquet", tables
    in_top = [f for f in of(".csv", ".tsv", ".jsonl", ".ndjson") if f.parent == folder]
    if len(in_top) == 1:
        return "table", in_top
    if coco := [f for f in of(".json") if f.parent in (folder, folder / "annotations") and _is_coco(f)]:
        if len(coco) > 1:
            choice = ", ".join(f.relative_to(folder).as_posix() for f in coco[:6])
            raise BadData(f"{folder} holds {len(coco)} COCO files: give the path of one ({choice})")
        return "coco", coco
    if pictures:
        stems = {f.with_suffix("") for f in of(".txt")}
        captioned = sum(f.with_suffix("") in stems for f in pictures)
        return ("sidecar" if captioned * 2 >= len(pictures) else "image-folder"), [folder]
    if of(*VIDEOS):
        return "video-folder", [folder]
    if in_top:
        choice = ", ".join(f.name for f in in_top[:6])
        raise BadData(f"{folder} holds {len(in_top)} tables: give the path of one ({choice})")
    kinds = ", ".join(f"{n} {s or 'without suffix'}" for s, n in Counter(f.suffix for f in files).most_common(5))
    raise BadData(
        f"{folder} holds no data that can be read (found: {kinds or 'nothing'}). Readable layouts: "
        + "; ".join(f"{name} ({what})" for name, what in LAYOUTS.items())
    )


def _is_coco(path: Path) -> bool:
    """Whether a JSON file starts as an object with "images" or "annotations", told from its beginning or its keys."""
    with path.open("rb") as file:
        start = file.read(65536).decode("utf-8", "replace").lstrip("\ufeff \n\r\t")
    if not start.startswith("{"):
        return False
    if re.search(r'"(images|annotations)"\s*:\s*\[', start):
        return True
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return "images" in data and "annotations" in data
