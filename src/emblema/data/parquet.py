"""Parquet: words are read at once, pictures row group by row group when they are asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emblema.core.errors import BadData

CACHE_BYTES = 512 * 2**20  # of pictures kept per column: all of a bundled set, a part of a large one


class ArrowColumn(Sequence):
    """An Arrow column in memory; values become Python objects one at a time."""

    def __init__(self, values: pa.ChunkedArray):
        self.values = values.combine_chunks() if values.num_chunks != 1 else values.chunk(0)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row):
        return self.values[row].as_py()

    def take(self, rows: np.ndarray) -> list[Any]:
        """The values of many rows, at once."""
        return self.values.take(pa.array(rows)).to_pylist()


class LazyColumn(Sequence):
    """A column of large values (pictures) of one or more parquet files, read by row group and cached.

    The cache holds the last row groups up to `cache_bytes`. Threads share it; a copy in another process starts empty.
    """

    def __init__(self, files: Sequence[Path], column: str, cache_bytes: int = CACHE_BYTES):
        self.files, self.column, self.cache_bytes = [Path(f) for f in files], column, cache_bytes
        self.groups: list[tuple[int, int]] = []  # (file, row group in it)
        starts = [0]
        for number, file in enumerate(self.files):
            metadata = open_parquet(file).metadata
            for group in range(metadata.num_row_groups):
                self.groups.append((number, group))
                starts.append(starts[-1] + metadata.row_group(group).num_rows)
        self.starts = np.array(starts)
        self._open()

    def _open(self) -> None:
        self._cache: OrderedDict[int, pa.Array] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()
        self._handles: dict[int, pq.ParquetFile] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, row):
        row = range(len(self))[row]
        group = int(np.searchsorted(self.starts, row, side="right")) - 1
        value = self._group(group)[row - int(self.starts[group])].as_py()
        return picture_of(value, self.files[self.groups[group][0]].parent)

    def _group(self, group: int) -> pa.Array:
        with self._lock:
            if group in self._cache:
                self._cache.move_to_end(group)
                return self._cache[group]
            number, inside = self.groups[group]
            if number not in self._handles:
                self._handles[number] = open_parquet(self.files[number])
            table = self._handles[number].read_row_group(inside, columns=[self.column], use_threads=False)
            values = table.column(0).combine_chunks()
            values = values.chunk(0) if isinstance(values, pa.ChunkedArray) else values
            self._cache[group] = values
            self._bytes += values.nbytes
            while self._bytes > self.cache_bytes and len(self._cache) > 1:
                self._bytes -= self._cache.popitem(last=False)[1].nbytes
            return values


class Joined(Sequence):
    """Another column's values in an order of one's own: how a view borrows pictures."""

    def __init__(self, column: Sequence, rows: np.ndarray):
        self.column, self.rows = column, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row):
        return self.column[int(self.rows[row])]


def picture_of(value: Any, folder: Path) -> Any:
    """A picture as parquet holds it: bytes, a list of them (clips), a path, or Hugging Face's {bytes, path}."""
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    return folder / value if isinstance(value, str) else value


def open_parquet(path: Path | str) -> pq.ParquetFile:
    """A parquet file, memory-mapped. Raises `BadData` when it is none."""
    try:
        return pq.ParquetFile(path, memory_map=True)
    except FileNotFoundError:
        raise BadData(f"no file {path}") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise BadData(f"{path} is no parquet file, or is truncated: {error}") from None


def table_columns(files: Sequence[Path], lazy: Sequence[str] = ("image", "frames")) -> dict[str, Sequence]:
    """The columns of parquet files of one schema; those named in `lazy` are read when asked for.

    Columns of strings and numbers become `ArrowColumn`s in the order of the files.
    """
    schemas = [open_parquet(f).schema_arrow for f in files]
    for file, schema in zip(files, schemas):
        if schema.names != schemas[0].names:
            raise BadData(f"{file} has columns {schema.names}, but {files[0]} has {schemas[0].names}")
    eager = [n for n in schemas[0].names if n not in lazy]
    table = pa.concat_tables([open_parquet(f).read(columns=eager) for f in files], promote_options="permissive")
    columns: dict[str, Sequence] = {n: ArrowColumn(table.column(n)) for n in eager}
    return columns | {n: LazyColumn(files, n) for n in schemas[0].names if n in lazy}
