"""CLIP_benchmark's WebDataset folders: `test/0.tar`, `test/nshards.txt`, `classnames.txt` beside them.

Source: https://github.com/LAION-AI/CLIP_benchmark.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from emblema.core.errors import BadData
from emblema.data.datasets import Skip
from emblema.data.layouts import Found, Needs, Place
from emblema.data.layouts.joined import LATER, Later, items_of
from emblema.data.shards import read_shards

COUNT = "nshards.txt"


def needs() -> Needs:
    return {"" if s == "test" else s: (f"{s}/{COUNT}", f"{s}/0.tar") for s in ("test", "train")}


def read(place: Place) -> Found:
    path = place.root / "classnames.txt"
    names = [n.strip() for n in path.read_text(encoding="utf-8").splitlines() if n.strip()] if path.exists() else []

    notes: list[str] = []

    def items() -> Iterator[dict[str, Any] | Skip]:
        for split in filter(place.wants, ("train", "test")):
            folder = place.root / split
            if not (folder / COUNT).exists():
                continue
            text = (folder / COUNT).read_text().strip()
            if not text.isdigit():
                raise BadData(f"{folder / COUNT} says {text!r}: expected the number of shards")
            shards = [folder / f"{i}.tar" for i in range(int(text))]
            for shard in shards:
                if not shard.exists():
                    yield Skip(f"{split}/{shard.name}", "missing file", f"no file {shard}; {COUNT} says {text} shards")
            if found := [s for s in shards if s.exists()]:
                records = read_shards(found, class_names=names or None)
                if records.class_names and not names:
                    yield Skip(
                        path.name, "missing file", f"no file {path} with a class name a line, in order of labels"
                    )
                yield from items_of([(split, records)], notes)

    return Found(items(), names, dict.fromkeys(LATER, Later), notes)
