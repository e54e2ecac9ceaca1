"""Parquet files that come out the same, byte for byte, each time they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 2000  # rows that are read together
TYPES: dict[str, pa.DataType] = {
    "image": pa.binary(),
    "frames": pa.list_(pa.binary()),
    "texts": pa.list_(pa.string()),
    "tags": pa.list_(pa.string()),
    "novel": pa.bool_(),
    "frame_ms": pa.int32(),
}
PLAIN = ("key", "image", "frames")  # columns that a dictionary would make larger


def write(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows, sorted by the first columns that are strings, with the given columns in their order."""
    keys = [c for c in columns if c in ("key", "concept", "lang", "label")]
    ordered = sorted(rows, key=lambda row: [row[k] or "" for k in keys])
    schema = pa.schema([(c, TYPES.get(c, pa.string())) for c in columns])
    table = pa.table({c: [row[c] for row in ordered] for c in columns}, schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    coded = [c for c in columns if c not in PLAIN and TYPES.get(c) in (None, TYPES["texts"])]
    pq.write_table(
        table,
        path,
        row_group_size=ROW_GROUP,
        compression=_compression(columns),  # type: ignore[arg-type]
        compression_level=None,
        use_dictionary=[_leaf(c) for c in coded],  # type: ignore[arg-type]
        write_statistics=False,
        store_schema=True,
        data_page_version="1.0",
        version="2.6",
    )


def _leaf(column: str) -> str:
    """The name of a column's leaf, as the writer wants it."""
    return f"{column}.list.element" if pa.types.is_list(TYPES.get(column, pa.string())) else column


def _compression(columns: Sequence[str]) -> dict[str, str]:
    """zstd for words, nothing for pictures, which are compressed already."""
    return {_leaf(c): "NONE" if c in ("image", "frames") else "ZSTD" for c in columns}
