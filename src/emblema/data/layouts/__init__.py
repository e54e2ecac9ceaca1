"""Readers of the survey's data sets as people have them on disk: one file a layout, the sets are rows in `survey.py`.

A layout is a file with two functions. `needs(**options)` names the files that make it, by group: those of the group
"" must be there, those of any other group all or not at all. `read(place, **options)` gives the items of
`datasets.collect`. A path may name alternatives, the likeliest first: "images|jpg".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from emblema.core.errors import BadData
from emblema.data.datasets import SPLITS, OnBroken, Records, Skip, collect
from emblema.data.naming import Names, names_of
from emblema.data.survey import READABLE
from emblema.data.survey_card import Layout, SurveySet

Needs = Mapping[str, Sequence[str]]
LOOSE = ("classes", "wds", "hf_parquet", "roboflow", "memes")  # tell no set by their files alone


@dataclass(frozen=True)
class Place:
    """Where a set lies, and what is wanted of it."""

    root: Path
    name: str
    names: Names
    split: str | None = None

    def wants(self, split: str) -> bool:
        return self.split in (None, split)

    def path(self, alternatives: str) -> Path:
        """The first of the alternatives that exists, else the first."""
        return first_of(self.root, alternatives) or self.root / alternatives.split("|")[0]


@dataclass
class Found:
    """What a reader found: items, class names in order, and how columns of items become columns of records."""

    items: Iterable[Mapping[str, Any] | Skip]
    classes: Sequence[str] = ()
    columns: Mapping[str, Callable[[list], Sequence]] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Located:
    """A layout at a root; `missing` says in words which of its files are not there."""

    root: Path
    layout: Layout
    missing: tuple[str, ...] = ()
    share: float = 1.0


def first_of(root: Path, alternatives: str) -> Path | None:
    """The first of "a|b" that exists below a folder; a `*` stands for any letters."""
    for one in alternatives.split("|"):
        if "*" in one:
            if found := sorted(root.glob(one)):
                return found[0]
        elif (root / one).exists():
            return root / one
    return None


def module(layout: Layout) -> Any:
    return import_module(f"emblema.data.layouts.{layout.reader}")


def locate(row: SurveySet, path: Path | str) -> Located:
    """The layout in which a set lies at a path, or the one that comes nearest, with what it lacks.

    The path may be the set's folder, the folder of data sets that holds it under one of its usual names, or the
    folder of pictures inside it. Raises `BadData` when nothing of any known layout is there.
    """
    path = Path(path)
    if not path.is_dir():
        raise BadData(f"no folder {path}: give the folder of {row.name}, as one of these: {'; '.join(tell(row))}")
    best: Located | None = None
    for layout in row.layouts:
        groups = module(layout).needs(**layout.options)
        inner = {need.split("/")[0] for needs in groups.values() for n in needs for need in n.split("|")}
        above = [path.parent] if path.name in inner and path.name not in ("train", "test", "val", "images") else []
        for root in (path, *(path / f for f in row.folders), *above):
            if not root.is_dir():
                continue
            found = _compare(root, layout, groups)
            if best is None or found.share > best.share:
                best = found
    if best is None or not best.share:
        raise BadData(f"{path} holds nothing of {row.name}. It is read as one of these: {'; '.join(tell(row))}")
    return best


def _compare(root: Path, layout: Layout, groups: Needs) -> Located:
    """How much of a layout lies at a root."""
    there, wanted, missing = 0, 0, []
    for group, needs in groups.items():
        lacking = [n for n in needs if first_of(root, n) is None]
        if group and len(lacking) == len(needs):  # a split that was never brought
            continue
        wanted, there = wanted + len(needs), there + len(needs) - len(lacking)
        missing += [_missing(root, n) for n in lacking]
    return Located(root, layout, tuple(missing), there / wanted if wanted else 0.0)


def _missing(root: Path, need: str) -> str:
    first, *others = need.split("|")
    also = f" (or {', '.join(str(root / o) for o in others)})" if others else ""
    return f"{first} is missing: expected at {root / first}{also}"


def tell(row: SurveySet) -> list[str]:
    """The layouts of a set in words, each by the files that make it."""
    told = []
    for layout in row.layouts:
        groups = module(layout).needs(**layout.options)
        told.append(
            f"[{layout.reader}] " + ", ".join(n.replace("|", " or ") for needs in groups.values() for n in needs)
        )
    return told


def read(row: SurveySet, at: Located, split: str | None = None, on_broken: OnBroken = "skip") -> Records:
    """The records of a set, all splits or one. Raises `BadData` when files of its layout are missing."""
    if at.missing:
        raise BadData(f"{row.name} at {at.root} is not whole: {'; '.join(at.missing)}")
    split = SPLITS.get(split, split) if split else None
    if split and "all" not in at.layout.sizes and split not in (at.layout.sizes or SPLITS.values()):
        splits = ", ".join(at.layout.sizes)
        raise BadData(f"{row.name} has no split {split!r}; its splits: {splits}{f' ({row.note})' if row.note else ''}")
    place = Place(at.root, row.name, names_of(row.name), split)
    found = module(at.layout).read(place, **at.layout.options)
    records = collect(row.name, found.items, on_broken, found.classes or None)
    for name, wrap in found.columns.items():
        if name in records.columns:
            records.columns[name] = wrap(list(records.columns[name]))
    records.class_names = list(found.classes) or records.class_names
    records.report.notes += found.notes
    task = {"retrieval": "image-text"}.get(row.task, row.task)
    records.card = replace(
        records.card, title=row.title, task=task, source=f"{at.layout.reader} layout at {at.root}",
        classes=len(records.class_names), notes=(row.note,) if row.note else (),
    )  # fmt: skip
    return records


def recognise(folder: Path) -> tuple[SurveySet, Located] | None:
    """The set whose files lie in a folder, told by them alone; None when it is no set's.

    Of several that fit, the one that needs the most files is meant, or the one of the folder's name. Raises `BadData`
    when that leaves more than one.
    """
    fits: list[tuple[int, SurveySet, Located]] = []
    for row in READABLE.values():
        for layout in row.layouts:
            if layout.reader in LOOSE or layout.options.get("train") == "Train":
                continue
            groups = module(layout).needs(**layout.options)
            at = _compare(folder, layout, groups)
            if at.share == 1.0 and not at.missing:
                fits.append((sum(len(n) for n in groups.values()), row, at))
                break
    most = [(row, at) for count, row, at in fits if count == max(f[0] for f in fits)]
    named = [(row, at) for row, at in most if folder.name in row.folders or folder.name == row.name]
    most = named if len(named) == 1 else most
    if len(most) > 1:
        names = " or ".join(row.name for row, _ in most)
        raise BadData(f"{folder} may be {names}: say which, as {most[0][0].name}:{folder}")
    return most[0] if most else None
