"""How every split is drawn: by stable hashes and by literal lists, never by a random generator."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

HELD_OUT_FAMILIES = frozenset({"openmoji", "emojione", "emojione-v1", "emojione-monotone"})
TEST_SHARE = 0.14  # of the captions of icons and clip-art
VAL_SHARE = 0.03
NOVEL_SHARE = 0.2  # of the object classes of each group


def share(text: str, salt: str) -> float:
    """A number in [0, 1) that depends on the text and the salt only."""
    digest = hashlib.sha256(f"{salt}\0{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def emblem_split(family: str, key: str, text: str, concept: str | None, known: frozenset[str] = frozenset()) -> str:
    """train, val or test of one emblem.

    Held-out families are test. A picture of an emoji, and any picture whose caption is one of the `known`
    labels of emoji, is train, or val by the hash of its key. Every other picture goes by the hash of its
    caption, so that all pictures with one caption stand on one side.
    """
    if family in HELD_OUT_FAMILIES:
        return "test"
    if concept is not None or text in known:
        return "val" if share(key, "emblems-val") < VAL_SHARE else "train"
    place = share(text, "emblems-caption")
    return "test" if place < TEST_SHARE else "val" if place < TEST_SHARE + VAL_SHARE else "train"


def novel_concepts(classes: Iterable[tuple[str, str]]) -> frozenset[str]:
    """The novel fifth of (name, group) pairs: in each group the `NOVEL_SHARE` with the smallest hashes."""
    groups: dict[str, list[str]] = {}
    for name, group in classes:
        groups.setdefault(group, []).append(name)
    novel: set[str] = set()
    for names in groups.values():
        names.sort(key=lambda name: share(name, "novel"))
        novel.update(names[: round(NOVEL_SHARE * len(names))])
    return frozenset(novel)


def pick(items: Sequence[str], number: int, salt: str) -> list[str]:
    """`number` of the items, those with the smallest hashes, in their first order."""
    chosen = set(sorted(items, key=lambda item: share(item, salt))[:number])
    return [item for item in items if item in chosen]
