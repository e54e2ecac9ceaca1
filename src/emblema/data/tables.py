"""Tables of pairs or labelled pictures: CSV, TSV, JSON, JSONL and parquet; a column's name tells what it holds."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from emblema.core.errors import BadData
from emblema.data.datasets import OnBroken, Records, Skip, collect
from emblema.data.image_folder import empty_file
from emblema.data.parquet import Joined, LazyColumn, open_parquet

# role -> names of columns, the likeliest first
ROLES: dict[str, tuple[str, ...]] = {
    "image": (
        *("filepath", "image", "path", "image_path", "file_name", "filename", "file", "img", "jpg", "png", "video"),
        "frames",
    ),
    "text": ("title", "caption", "text", "description", "sentence"),
    "texts": ("texts", "captions", "sentences"),
    "label": ("label", "class", "category", "target", "label_name", "class_name"),
    "labels": ("labels", "classes", "categories"),  # of multi-label sets: a list, or names separated by |
    "negatives": ("negatives", "foils", "hard_negatives"),  # captions nearly right: the same, or {kind: caption}
    "lang": ("lang", "language"),
    "split": ("split", "subset", "partition"),
    "domain": ("domain", "family"),
    "key": ("key", "id", "image_id", "uid", "__key__"),
}
ADDRESSES = ("url", "image_url", "img_url", "URL")
csv.field_size_limit(2**27)  # pictures as base64 do not belong here, long captions do


def read_tables(files: Sequence[Path | str], on_broken: OnBroken = "skip") -> Records:
    """Records of tables with the same columns, read as one set.

    Paths are relative to the folder of their table. Raises `BadData` when no column holds pictures, or when it holds
    web addresses: nothing is downloaded.
    """
    paths = [Path(f) for f in files]
    name = paths[0].stem if len(paths) == 1 else paths[0].parent.name
    if paths[0].suffix.lower() == ".parquet":
        return _read_parquet(name, paths, on_broken)
    items = (item for path in paths for item in _items(path))
    return collect(name, items, on_broken)


def roles_of(names: Sequence[str], where: Path | str) -> dict[str, str]:
    """{role: column}. Raises `BadData` when there is no column of pictures."""
    lower = {n.strip().lower(): n for n in reversed(names)}
    roles = {role: lower[c] for role, known in ROLES.items() for c in reversed(known) if c in lower}
    if "image" not in roles:
        if any(a in names for a in ADDRESSES):
            raise BadData(
                f"{where} holds web addresses, and nothing is downloaded here: fetch the pictures first "
                "(img2dataset writes folders and shards that can be read as they are)"
            )
        raise BadData(f"{where} has no column of pictures: {list(names)}. Call one of them {ROLES['image'][0]!r}")
    if "key" in roles and roles["key"] == roles["image"]:
        del roles["key"]
    return roles


def _items(path: Path) -> Iterator[dict[str, Any] | Skip]:
    """The rows of one CSV, TSV, JSON or JSONL file."""
    rows = _json_rows(path) if path.suffix.lower() in (".json", ".jsonl", ".ndjson") else _csv_rows(path)
    roles: dict[str, str] = {}
    for number, row in rows:
        if isinstance(row, Skip):
            yield row
            continue
        if not roles:
            roles = roles_of(list(row), path)
        yield item_of({role: row.get(column) for role, column in roles.items()}, path.parent, f"{path.name}:{number}")


def item_of(row: Mapping[str, Any], folder: Path, where: str) -> dict[str, Any] | Skip:
    """One row by roles to one item of `collect`; `where` names it in the report."""
    place = str(row.get("image") or "").strip()
    if not place:
        return Skip(where, "missing file", "the row names no picture")
    if place.startswith(("http://", "https://", "s3://")):
        return Skip(where, "web address", f"{place} is not on this machine")
    file = folder / place
    if problem := empty_file(file, where):
        return problem
    words = words_of_row(row, where)
    if isinstance(words, Skip):
        return words
    key = row.get("key")
    return {"key": key if key not in (None, "") else place, "image": file, **words, **rest_of(row)}


def rest_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says besides picture and words."""
    rest = {role: row[role] or None for role in ("split", "domain", "lang") if role in row}
    rest |= {role: _several(row[role]) for role in ("labels", "negatives") if role in row}
    if "label" in row:
        rest["label"] = row["label"] if row["label"] not in (None, "") else None
    return rest


def _several(value: Any) -> Any:
    """A list, or a mapping; from text: JSON, or parts separated by |."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadData(f"{value!r} starts like JSON, but is none ({error}): write a list, or parts with |") from None
    elif isinstance(value, str):
        value = [part for part in map(str.strip, value.split("|")) if part]
    return (value if isinstance(value, dict) else tuple(value)) if value else None


def words_of_row(row: Mapping[str, Any], where: str) -> dict[str, Any] | Skip:
    """Caption and further captions; `Skip` when the table has captions and this row's is empty or not UTF-8."""
    if "text" not in row and "texts" not in row:
        return {}
    more = row.get("texts") or ()
    captions = [more] if isinstance(more, str) else list(more)
    captions = [str(c).strip() for c in (row.get("text"), *captions) if c is not None and str(c).strip()]
    if not captions:
        return Skip(where, "empty caption", "the caption is empty")
    if any("\udc80" <= letter <= "\udcff" for c in captions for letter in c):
        return Skip(where, "not UTF-8", f"the caption is not UTF-8: {captions[0]!r}")
    return {"text": captions[0], "texts": tuple(captions[1:]) or None}


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | Skip]]:
    """(line, row); bytes that are not UTF-8 come as surrogates, for `words_of_row` to find."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        first = file.readline()
        file.seek(0)
        separator = "\t" if path.suffix.lower() == ".tsv" or first.count("\t") > first.count(",") else ","
        reader = csv.DictReader(file, delimiter=separator)
        if not reader.fieldnames:
            raise BadData(f"{path} is empty: a table begins with the names of its columns")
        roles_of(reader.fieldnames, path)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield reader.line_num, Skip(f"{path.name}:{reader.line_num}", "broken row", str(error))
                continue
            if None in row:
                where = f"{path.name}:{reader.line_num}"
                count = len(reader.fieldnames) + len(row[None])
                reason = f"{count} fields for {len(reader.fieldnames)} columns: quote fields that hold the separator"
                yield reader.line_num, Skip(where, "broken row", reason)
            else:
                yield reader.line_num, row


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | Skip]]:
    """(line or position, row) of JSONL, or of one JSON list of objects."""
    if path.suffix.lower() == ".json":
        try:
            data = json.loads(path.read_bytes())
        except ValueError as error:
            raise BadData(f"{path} is no JSON: {error}") from None
        if not isinstance(data, list):
            raise BadData(f"{path} is neither a list of records nor COCO: {type(data).__name__}")
        yield from enumerate(data, 1)
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path.name}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
                yield number, row if isinstance(row, dict) else Skip(where, "broken row", "the line is no object")
            except UnicodeDecodeError as error:
                yield number, Skip(where, "not UTF-8", f"byte {line[error.start]:#04x} at {error.start} is not UTF-8")
            except ValueError as error:
                yield number, Skip(where, "broken row", f"the line is no JSON: {error}")


def _read_parquet(name: str, files: Sequence[Path], on_broken: OnBroken) -> Records:
    """Parquet whose pictures are bytes, Hugging Face's {bytes, path}, or paths; bytes stay in the files."""
    schema = open_parquet(files[0]).schema_arrow
    roles = roles_of(schema.names, files[0])
    column = roles.pop("image")
    if str(schema.field(column).type) in ("string", "large_string"):
        columns = [*roles.values(), column]
        batches = ((f, b) for f in files for b in open_parquet(f).iter_batches(columns=columns))
        rows = ((f, i, row) for f, b in batches for i, row in enumerate(_rows(b)))
        by_role = roles | {"image": column}
        named = (({r: row[c] for r, c in by_role.items()}, f.parent, f"{f.name}:{i}") for f, i, row in rows)
        return collect(name, (item_of(*item) for item in named), on_broken)
    pictures = LazyColumn(files, column)
    kept: list[int] = []

    def items() -> Iterator[dict[str, Any] | Skip]:
        number = -1
        for file in files:
            parquet = open_parquet(file)
            for batch in parquet.iter_batches(columns=list(roles.values())) if roles else ():
                for row in _rows(batch):
                    number += 1
                    where = f"{file.name}:{number}"
                    words = words_of_row({role: row[c] for role, c in roles.items()}, where)
                    if isinstance(words, Skip):
                        yield words
                        continue
                    kept.append(number)
                    key = row[roles["key"]] if "key" in roles else None
                    rest = rest_of({role: row[c] for role, c in roles.items()})
                    yield {"key": where if key is None else key, **words, **rest}
            if not roles:
                for _ in range(parquet.metadata.num_rows):
                    number += 1
                    kept.append(number)
                    yield {"key": f"{file.name}:{number}"}

    records = collect(name, items(), on_broken)
    records.columns["image"] = Joined(pictures, np.array(kept))
    return records


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The batch's rows; text that is not UTF-8 comes as surrogates, for `words_of_row` to find."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        columns = {}
        for name, values in zip(batch.schema.names, batch.columns):
            if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
                raw = values.cast(pa.large_binary()).to_pylist()
                columns[name] = [v if v is None else v.decode("utf-8", "surrogateescape") for v in raw]
            else:
                columns[name] = values.to_pylist()
        return [dict(zip(columns, row)) for row in zip(*columns.values())]
