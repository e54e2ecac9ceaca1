"""Several records as one set, a split each: how layouts of many files reuse the readers of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from emblema.data.datasets import Records, Skip


class Later(Sequence):
    """Values of other columns, fetched when they are asked for (pictures, masks)."""

    def __init__(self, places: Sequence[tuple[Sequence, int] | None]):
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, row):
        place = self.places[row]
        return None if place is None else place[0][place[1]]


LATER = {"image": Later, "mask": Later}


def items_of(parts: Iterable[tuple[str, Records]]) -> Iterator[dict[str, Any] | Skip]:
    """The rows of (split, records) in order, and what their readers left out; read them with `columns=LATER`."""
    for split, records in parts:
        yield from records.report.skips
        plain = {n: c for n, c in records.columns.items() if n not in LATER}
        for row in range(len(records)):
            later = {n: (records.columns[n], row) for n in LATER if n in records.columns}
            yield {**{n: column[row] for n, column in plain.items()}, **later, "split": split}
