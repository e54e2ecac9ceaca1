"""Pictures with words beside them: `0001.jpg`, `0001.txt`, and img2dataset's `0001.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emblema.data.datasets import SPLITS, OnBroken, Records, Skip, collect
from emblema.data.image_folder import empty_file, pictures_in

CAPTION_KEYS = ("caption", "text", "title")


def read_sidecar(folder: Path | str, on_broken: OnBroken = "skip") -> Records:
    """Records of a folder of pairs; each further line of a `.txt` is a further caption of the same picture."""
    folder = Path(folder)

    def items() -> Iterator[dict[str, Any] | Skip]:
        for file in pictures_in(folder):
            parts = file.relative_to(folder).parts
            key = "/".join(parts)
            if problem := empty_file(file, key):
                yield problem
                continue
            words = _words(file, key)
            if isinstance(words, Skip):
                yield words
            else:
                split = SPLITS.get(parts[0].lower()) if len(parts) > 1 else None
                yield {"key": key, "image": file, "split": split, **words}

    return collect(folder.name, items(), on_broken)


def _words(picture: Path, key: str) -> dict[str, Any] | Skip:
    """{"text": ..., "texts": ...} of the files beside a picture."""
    caption, extra = picture.with_suffix(".txt"), picture.with_suffix(".json")
    if caption.exists():
        return words_of(caption.read_bytes(), key)
    if extra.exists():
        return words_of(extra.read_bytes(), key, as_json=True)
    return Skip(key, "missing caption", f"no {caption.name} beside the picture")


def words_of(data: bytes, key: str, as_json: bool = False) -> dict[str, Any] | Skip:
    """Caption and further captions from a `.txt` or `.json` file's content."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Skip(key, "not UTF-8", f"the caption is not UTF-8 (byte {data[error.start]:#04x} at {error.start})")
    if as_json:
        try:
            fields = json.loads(text)
        except ValueError as error:
            return Skip(key, "broken JSON", f"the .json cannot be read: {error}")
        fields = fields if isinstance(fields, dict) else {}
        text = str(next((fields[k] for k in CAPTION_KEYS if fields.get(k)), ""))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return Skip(key, "empty caption", "the caption is empty")
    return {"text": lines[0], "texts": tuple(lines[1:]) or None}
