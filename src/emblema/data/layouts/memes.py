"""Hateful Memes: `train.jsonl`, `dev.jsonl` (or `dev_seen.jsonl`) and `img`; results are on dev, so it is test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from emblema.core.errors import BadData
from emblema.data.datasets import Skip
from emblema.data.image_folder import empty_file
from emblema.data.layouts import Found, Needs, Place

FILES = {"train": "train.jsonl", "test": "dev_seen.jsonl|dev.jsonl"}


def needs() -> Needs:
    return {"": (FILES["test"], "img"), "train": (FILES["train"],)}


def read(place: Place) -> Found:
    def items() -> Iterator[dict[str, Any] | Skip]:
        for split, name in FILES.items():
            path = place.path(name)
            if not place.wants(split) or not path.exists():
                continue
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                try:
                    row = json.loads(line)
                    where, label, text = row["img"], int(row["label"]), row["text"]
                except (ValueError, KeyError) as error:
                    raise BadData(f"{path}:{number} is no meme ({error!r}): expected img, label and text") from None
                file = place.root / where
                yield empty_file(file, where) or {
                    "key": where, "image": file, "label": label, "text": text, "split": split,
                }  # fmt: skip

    return Found(items(), place.names.classes)
