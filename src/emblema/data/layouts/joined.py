"""Several records as one set, a split each: how layouts of many files reuse the readers of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from emblema.data.datasets import Records, Skip
from emblema.data.layouts import Found


class Later(Sequence):
    """Values of other columns, fetched when they are asked for (pictures, masks)."""

    def __init__(self, places: Sequence[tuple[Sequence, int] | None]):
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, row):
        place = self.places[row]
        return None if place is None else place[0][place[1]]


LATER = ("image", "mask")


def found_in(parts: Iterable[tuple[str, Records]], classes: Sequence[str]) -> Found:
    """The rows of (split, records) in order; what their readers left out and noted goes along."""
    notes: list[str] = []
    return Found(items_of(parts, notes), classes, dict.fromkeys(LATER, Later), notes)


def items_of(parts: Iterable[tuple[str, Records]], notes: list[str]) -> Iterator[dict[str, Any] | Skip]:
    """The rows of (split, records) and what was left out; `notes` are added to."""
    for split, records in parts:
        yield from records.report.skips
        notes += records.report.notes
        plain = {n: c for n, c in records.columns.items() if n not in LATER}
        for row in range(len(records)):
            later = {n: (records.columns[n], row) for n in LATER if n in records.columns}
            yield {**{n: column[row] for n, column in plain.items()}, **later, "split": split}
