"""WebDataset shards, read through an index of their members: any record at any time, so a run resumes exactly.

A sample is what shares a name up to its first dot: `0001.jpg`, `0001.txt`, `0001.json`, `0001.cls`. Captions and labels
are read when the index is made, pictures when they are asked for.
"""

from __future__ import annotations

import os
import re
import tarfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emblema.core.errors import BadData
from emblema.data.catalog import PICTURES
from emblema.data.datasets import SPLITS, OnBroken, Records, Skip, collect
from emblema.data.sidecar import words_of


@dataclass
class Sample:
    """The members of one sample: suffix -> (offset, bytes) in the shard."""

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)


class TarColumn(Sequence):
    """Pictures inside tar files, read by offset. Threads share the open files; another process opens its own."""

    def __init__(self, files: Sequence[Path], places: Sequence[tuple[int, int, int]]):
        self.files, self.places = list(files), list(places)  # (shard, offset, bytes)
        self._open()

    def _open(self) -> None:
        self._handles: dict[int, int] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "places": self.places}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __del__(self) -> None:
        for handle in getattr(self, "_handles", {}).values():
            os.close(handle)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, row):
        shard, offset, size = self.places[row]
        with self._lock:
            if shard not in self._handles:
                self._handles[shard] = os.open(self.files[shard], os.O_RDONLY)
        return os.pread(self._handles[shard], size, offset)


def read_shards(
    files: Sequence[Path | str], on_broken: OnBroken = "skip", class_names: Sequence[str] | None = None
) -> Records:
    """Records of tar shards, in the order of the files.

    A folder named train, val or test around a shard is its split; `class_names`, else `classnames.txt` beside or above
    the shards, name the classes of `.cls` members. Truncated shards give what is whole and report the rest.
    """
    paths = [Path(f) for f in files]
    places: list[tuple[int, int, int]] = []

    def items() -> Iterator[dict[str, Any] | Skip]:
        for number, path in enumerate(paths):
            split = SPLITS.get(path.parent.name.lower()) or _split_in_name(path.stem)
            with path.open("rb") as file:
                for sample in index_shard(path):
                    item = sample if isinstance(sample, Skip) else _item(sample, path, file, len(paths) > 1)
                    if isinstance(item, Skip):
                        yield item
                        continue
                    assert isinstance(sample, Sample)
                    places.append((number, *_picture(sample)))  # type: ignore[arg-type]
                    yield {**item, "split": split}

    name = paths[0].stem if len(paths) == 1 else paths[0].parent.name
    records = collect(name, items(), on_broken, class_names or _class_names(paths[0]))
    records.columns["image"] = TarColumn(paths, places)
    return records


def index_shard(path: Path) -> Iterator[Sample | Skip]:
    """The samples of one shard in order, then a `Skip` where the file breaks off or goes wrong."""
    size, sample = path.stat().st_size, None
    if size == 0:
        yield Skip(path.name, "broken shard", f"{path} is empty")
        return
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, file = member.name.rpartition("/")
                stem, _, suffix = file.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if sample is not None and sample.key != key:
                    yield sample
                    sample = None
                if member.offset_data + member.size > size:
                    yield Skip(f"{path.name}:{key}", "broken shard", f"{path} breaks off inside {member.name}")
                    return
                sample = sample or Sample(key)
                sample.members[f".{suffix.lower()}"] = (member.offset_data, member.size)
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
            end = tar.offset
    except tarfile.TarError as error:
        if sample is not None:
            yield sample
        yield Skip(path.name, "broken shard", f"{path} cannot be read to its end: {error}")
        return
    if sample is not None:
        yield sample
    if problem := _unread(path, end):
        yield Skip(path.name, "broken shard", problem)


def _unread(path: Path, end: int) -> str | None:
    """What lies after the last member: tarfile stops without a word at a damaged header or a missing end."""
    with path.open("rb") as file:
        file.seek(end)
        if not file.read(512):
            return f"{path} ends without tar's end mark: members may be missing"
        file.seek(end)
        while rest := file.read(2**20):
            if rest.strip(b"\0"):
                return f"{path} has a damaged header at byte {end}: what follows could not be read"
    return None


def _item(sample: Sample, path: Path, file: Any, many: bool) -> dict[str, Any] | Skip:
    """Key, words and label of a sample; `many` shards put their name before the key."""
    where = f"{path.stem}/{sample.key}" if many else sample.key
    picture = _picture(sample)
    if picture is None:
        return Skip(where, "no picture", f"{path.name} holds no picture for it, only {', '.join(sample.members)}")
    if not picture[1]:
        return Skip(where, "zero bytes", f"the picture in {path.name} is empty")

    def content(suffix: str) -> bytes:
        offset, size = sample.members[suffix]
        file.seek(offset)
        return file.read(size)

    item: dict[str, Any] = {"key": where}
    caption = next((s for s in (".txt", ".caption", ".text", ".json") if s in sample.members), None)
    if caption:
        words = words_of(content(caption), where, as_json=caption == ".json")
        if isinstance(words, Skip) and (caption != ".json" or words.kind != "empty caption"):
            return words
        item |= words if isinstance(words, dict) else {}
    if ".cls" in sample.members:
        item["label"] = content(".cls").decode("utf-8", "replace").strip()
    return item


def _picture(sample: Sample) -> tuple[int, int] | None:
    """(offset, bytes) of a sample's picture."""
    return next((place for suffix, place in sample.members.items() if suffix in PICTURES), None)


def _split_in_name(stem: str) -> str | None:
    """A split that begins a shard's name: "train-000012"."""
    return SPLITS.get(re.split(r"[-_.\d]", stem.lower())[0])


def _class_names(shard: Path) -> list[str] | None:
    for folder in (shard.parent, shard.parent.parent):
        file = folder / "classnames.txt"
        if file.exists():
            names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
            names = [n for n in names if n]
            if len(set(names)) != len(names):
                raise BadData(f"{file} names a class twice")
            return names
    return None
