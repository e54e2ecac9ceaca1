"""`cards.json` and `templates.json`: what the sets hold, counted from the files themselves."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from . import prose
from .classes import EXCLUDED, MERGED
from .downstream import TWIN_FLAGS

NAMES = {"emblem-actions": "action"}  # set -> the column that names the class, where it is not `label`
TOOLS = ("pillow", "pyarrow", "resvg-py", "numpy")  # their versions decide the bytes


def build(out: Path) -> None:
    """Write `cards.json` and `templates.json` beside the parquet files."""
    cards = {
        name: card(out / f"{name}.parquet", text)
        for name, text in prose.SETS.items()
        if (out / f"{name}.parquet").exists()
    }
    tools = {tool: metadata.version(tool) for tool in TOOLS}
    _dump(out / "cards.json", {"sets": cards, "built_with": tools})
    _dump(out / "templates.json", prose.TEMPLATES)


def _dump(path: Path, value: Any) -> None:
    """Write JSON that a person can read and that is the same each time."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")


def card(path: Path, text: Mapping[str, str]) -> dict[str, Any]:
    """The card of one set; views over `emblems` take rights and sizes from it."""
    name = path.stem
    table = pq.read_table(path)
    rights = table if "licence" in table.column_names or "key" not in table.column_names else _joined(path, table)
    found: dict[str, Any] = {
        "name": name,
        "title": text["title"],
        "use": text["use"],
        "evaluation_only": name in prose.EVALUATION_ONLY,
        "rows": table.num_rows,
        "splits": text["splits"],
        "split_rows": _counts(table, "split"),
        "novel_rows": sum(table["novel"].to_pylist()) if "novel" in table.column_names else 0,
        "image_size": _image_size(rights),
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "licences": _counts(rights, "licence"),
        "families": _counts(rights, "family"),
        "sources": sorted(_counts(rights, "source")),
        "columns": table.column_names,
    }
    if name == "multilingual":
        found |= {
            "languages": _counts(table, "lang"),
            "sources": ["npm:emojibase-data@17.0.0"],
            "licences": {"MIT": table.num_rows},
        }
    column = NAMES.get(name, "label")
    if column in table.column_names and name != "multilingual":
        found["classes"] = _classes(table, column)
    if name == "emblem-objects":
        found["merged"] = {
            label: {"takes_in": list(members), "reason": reason}
            for label, (members, reason) in MERGED.items()
            if (label,) != members
        }
        found["left_out"] = EXCLUDED
    if name == "emblem-flags":
        found["left_out"] = {flag: "drawn like another flag by some families" for flag in sorted(TWIN_FLAGS) if flag}
    return found


def _joined(path: Path, view: pa.Table) -> pa.Table:
    """The rows of `emblems` that a view shows."""
    emblems = pq.read_table(path.parent / "emblems.parquet", columns=["key", "image", "family", "licence", "source"])
    keys = set(view["key"].to_pylist())
    return emblems.filter(pa.array([key in keys for key in emblems["key"].to_pylist()]))


def _counts(table: pa.Table, column: str) -> dict[str, int]:
    """How often each value of a column stands in it, sorted; empty without the column."""
    values = table[column].to_pylist() if column in table.column_names else []
    return dict(sorted(Counter(values).items()))


def _classes(table: pa.Table, column: str) -> dict[str, dict[str, int]]:
    """Class -> split -> rows, and whether the class is novel."""
    found: dict[str, dict[str, int]] = {}
    novel = table["novel"].to_pylist() if "novel" in table.column_names else [False] * table.num_rows
    for label, split, is_novel in zip(table[column].to_pylist(), table["split"].to_pylist(), novel):
        counts = found.setdefault(label, {})
        counts[split] = counts.get(split, 0) + 1
        if is_novel:
            counts["novel"] = 1
    return {label: dict(sorted(found[label].items())) for label in sorted(found)}


def _image_size(table: pa.Table) -> str:
    """The largest width and height in pixels, such as "64 x 64", of a sample of 200 pictures."""
    column = next((c for c in ("image", "frames") if c in table.column_names), None)
    if column is None:
        return ""
    step = max(1, table.num_rows // 200)
    first = [
        v[0] if isinstance(v, list) else v for v in table[column].take(list(range(0, table.num_rows, step))).to_pylist()
    ]
    sizes = [Image.open(io.BytesIO(data)).size for data in first]
    return f"{max(w for w, _ in sizes)} x {max(h for _, h in sizes)}"
