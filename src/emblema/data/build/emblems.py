"""`emblems` and `emblem-objects`: emoji, icons and clip-art as image-text pairs, and their classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import clipart, emoji, icons, tables
from .classes import ObjectClass, object_classes
from .raster import Drawing, draw_all
from .splits import emblem_split, novel_concepts

COLUMNS = (
    "key",
    "image",
    "text",
    "texts",
    "family",
    "concept",
    "group",
    "kind",
    "split",
    "novel",
    "source",
    "licence",
)
OBJECT_COLUMNS = ("key", "label", "concept", "group", "family", "split", "novel")
TRANSLATION_COLUMNS = ("concept", "lang", "label", "tags")


def build(out: Path, cache: Path, workers: int = 2, larger: bool = False) -> None:
    """Write `emblems.parquet`, `emblem-objects.parquet` and `multilingual.parquet`; `larger`: more icons."""
    names = emoji.Names(cache)
    known = frozenset(c.label for c in names.concepts.values())
    drawings = emoji.drawings(cache, names) + icons.drawings(cache, names, larger) + clipart.drawings(cache, known)
    drawn = list(draw_all(distinct_keys(drawings), workers))
    classes = object_classes(
        names.concepts, ((d.concept, d.family) for d, _ in drawn if d.concept and d.kind == "emoji")
    )
    novel = novel_concepts((c.concept, c.group) for c in classes)
    rows = emblem_rows(drawn, classes, novel, known)
    tables.write(out / "emblems.parquet", rows, COLUMNS)
    tables.write(out / "emblem-objects.parquet", object_rows(rows, classes, novel), OBJECT_COLUMNS)
    tables.write(
        out / "multilingual.parquet",
        [dict(zip(TRANSLATION_COLUMNS, row)) for row in emoji.translations(cache)],
        TRANSLATION_COLUMNS,
    )


def distinct_keys(drawings: Iterable[Drawing]) -> list[Drawing]:
    """The drawings without later ones of the same key."""
    return list({d.key: d for d in reversed(list(drawings))}.values())


def emblem_rows(
    drawn: Iterable[tuple[Drawing, bytes]],
    classes: Sequence[ObjectClass],
    novel: frozenset[str],
    known: frozenset[str],
) -> list[dict[str, Any]]:
    """The rows of `emblems`: words, rights, split and the novel mark of each picture."""
    novel_members = {member for c in classes if c.concept in novel for member in c.members}
    mention = _mention([c.label for c in classes if c.concept in novel])
    rows = []
    for d, image in drawn:
        is_novel = d.concept in novel_members if d.concept else bool(mention.search(" | ".join((d.text, *d.texts))))
        rows.append(
            {
                "key": d.key,
                "image": image,
                "text": d.text,
                "texts": list(d.texts),
                "family": d.family,
                "concept": d.concept,
                "group": d.group,
                "kind": d.kind,
                "source": d.source,
                "licence": d.licence,
                "split": emblem_split(d.family, d.key, d.text, d.concept, known),
                "novel": is_novel,
            }
        )
    return rows


def _mention(labels: Sequence[str]) -> re.Pattern[str]:
    """A pattern that finds any of the labels as whole words, singular or plural."""
    return re.compile(r"\b(?:" + "|".join(re.escape(label) for label in sorted(labels)) + r")(?:s|es)?\b")


def object_rows(
    rows: Iterable[dict[str, Any]], classes: Sequence[ObjectClass], novel: frozenset[str]
) -> list[dict[str, Any]]:
    """The rows of `emblem-objects`: the emoji pictures of the object classes."""
    of = {member: c for c in classes for member in c.members}
    found = []
    for row in rows:
        c = of.get(row["concept"]) if row["kind"] == "emoji" else None
        if c is not None:
            found.append(
                {
                    "key": row["key"],
                    "label": c.label,
                    "concept": c.concept,
                    "group": c.group,
                    "family": row["family"],
                    "split": row["split"],
                    "novel": c.concept in novel,
                }
            )
    return found
