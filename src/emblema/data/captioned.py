"""Captions for records that have none or other ones: prompts from class names, names in another language."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from emblema.core.batch import Dataset, Record
from emblema.core.errors import BadData
from emblema.data.catalog import FOLDER
from emblema.data.templates import fill


class Captioned:
    """A data set whose records are changed one at a time when they are read."""

    def __init__(self, data: Dataset, change: Callable[[Record, int], Record], indices: Sequence[int] | None = None):
        self.data, self.change = data, change
        self.indices = range(len(data)) if indices is None else indices
        self.card, self.class_names = data.card, data.class_names

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        at = self.indices[index]
        return self.change(self.data[at], at)


def prompted(data: Dataset, templates: Sequence[str], labels: Sequence[Any] | None = None) -> Captioned:
    """Each labelled record without a caption gets its class name in every template: one is drawn at each access.

    `labels` are other labels than the records' own, one a record, of any kind; None where there is none.
    """
    names = list(data.class_names)
    number = {value: i for i, value in enumerate(dict.fromkeys(v for v in labels or () if v is not None))}

    def change(record: Record, at: int) -> Record:
        if labels is not None:
            record = replace(record, label=number.get(labels[at]))
        elif record.text is None and record.label is not None:
            first, *more = [fill(t, names[record.label]) for t in templates]
            record = replace(record, text=first, texts=tuple(more))
        return record

    return Captioned(data, change)


@cache
def names_in(language: str, folder: Path = FOLDER) -> dict[str, tuple[str, ...]]:
    """{concept: (name, further words)} of the bundled emoji concepts in a language, e.g. "ko"."""
    import pyarrow.parquet as pq

    rows = pq.read_table(folder / "multilingual.parquet").to_pylist()
    known = sorted({row["lang"] for row in rows})
    if language not in known:
        raise BadData(f"no names in the language {language!r}; there are {', '.join(known)}")
    return {row["concept"]: (row["label"], *row["tags"]) for row in rows if row["lang"] == language}
