"""What classes look like or have to do with, in words: what others ask a large language model for.

A user's JSON file {class name: [descriptors]}, or else `downstream.json`, written by hand for the classes of `fashion`
and `digits`, and the keywords of the drawn concepts in `emblems` (emojibase, MIT), of training pictures.
A class that none of them knows has no descriptors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from emblema.core.errors import BadData

BY_HAND = Path(__file__).parent / "downstream.json"
MOST = 8  # keywords of a concept


def descriptors(class_names: Sequence[str], path: str | Path = "") -> list[list[str]]:
    """One list a class, empty where nothing is known. Raises `BadData` for a file that is no {name: [words]}."""
    given = _read(Path(path)) if path else {}
    known = [given] if path else [_read(BY_HAND), _keywords()]
    if path and not any(_key(name) in given for name in class_names):
        raise BadData(
            f"{path} describes none of the {len(class_names)} classes, e.g. {class_names[0]!r}: check its keys"
        )
    return [next((source[_key(n)] for source in known if _key(n) in source), []) for n in class_names]


def _key(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())


def _read(path: Path) -> dict[str, list[str]]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadData(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(said, dict) or not all(isinstance(v, list) for v in said.values()):
        raise BadData(f'{path} must hold {{"class name": ["descriptor", ...]}}')
    return {_key(name): [str(v) for v in values] for name, values in said.items()}


@cache
def _keywords() -> dict[str, list[str]]:
    """The keywords of each concept, without those that only repeat its name."""
    from emblema.data import catalog

    data = catalog.load("emblems").split("train")
    found: dict[str, dict[str, None]] = {}
    for text, words in zip(data.column("text"), data.column("texts")):
        kept = {w: None for w in words or () if w.isascii() and w.replace(" ", "").isalpha() and w not in text}
        found.setdefault(_key(text), {}).update(kept)
    return {name: [f"to do with {word}" for word in list(words)[:MOST]] for name, words in found.items()}
