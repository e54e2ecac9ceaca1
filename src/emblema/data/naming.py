"""Class names and templates of the survey's sets: a file a set in `names/`, each with its source and licence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "names"
WORDNET = re.compile(r"^n\d{8}$")


@dataclass(frozen=True)
class Names:
    """What a file of `names/` says. `folders` and `ids` go with `classes`: how the set's files call them."""

    source: str = ""
    licence: str = ""
    classes: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    templates: tuple[str, ...] = ()

    def of(self, folder: str) -> str:
        """The class name that a folder or a label of the set's files stands for."""
        return dict(zip(self.folders, self.classes)).get(folder) or mend(folder)


@cache
def names_of(name: str) -> Names:
    """The names of a set; nothing where no file is kept for it."""
    said = {k: v if isinstance(v, str) else tuple(v) for k, v in _read(name).items() if k != "subsets"}
    return Names(**said)  # type: ignore[arg-type]


@cache
def imagenet(subset: str = "imagenet") -> dict[str, str]:
    """{WordNet id: class name} in the order of ImageNet-1k; `subset` may be "imagenet-a" or "imagenet-r" (200 each)."""
    said = _read("imagenet")
    known = dict(zip(said["folders"], said["classes"]))
    return {w: known[w] for w in said["subsets"].get(subset, said["folders"])}


@cache
def _read(name: str) -> dict:
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def mend(folder: str) -> str:
    """A folder's name as words: underscores and doubled spaces become spaces."""
    return " ".join(folder.replace("_", " ").split())


def spaced(folder: str) -> str:
    """Words run together, apart: "ApplyEyeMakeup" is "Apply Eye Makeup"; "HandStand" stays with UCF101's other name."""
    return mend(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", folder.replace("HandStand", "Handstand")))


def words_for(folders: Iterable[str]) -> dict[str, str] | None:
    """{WordNet id: class name} when all folders are ids of ImageNet-1k, else None."""
    folders = list(folders)
    if not folders or not all(WORDNET.match(f) for f in folders):
        return None
    known = imagenet()
    return {f: known[f] for f in folders} if all(f in known for f in folders) else None
