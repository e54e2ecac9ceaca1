"""What is in a data set, and what is wrong with it: counts, duplicates, captions, broken pictures, leakage."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from emblema.core.batch import Record
from emblema.data.catalog import load
from emblema.data.datasets import OnBroken, ReadReport, Records, Skip
from emblema.data.pictures import BrokenPicture, _decode, _over, flatten, open_picture

if TYPE_CHECKING:
    from rich.console import Group

NEAR = 4  # bits of 64 in which near duplicates may differ
ALIKE = 8.0  # of 255, the mean difference of small colour copies of near duplicates
SHOWN = 20  # items of each kind in the report
WORDNET = re.compile(r"^n\d{8}$")
GREY = (128, 128, 128)  # behind transparent pictures: black and white drawings stay apart


@dataclass
class Report:
    """The findings; `problems` says in words what needs a look."""

    name: str
    records: int
    splits: dict[str, int] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)  # records a class
    domains: dict[str, int] = field(default_factory=dict)
    captions: dict[str, Any] = field(default_factory=dict)
    broken: list[dict[str, str]] = field(default_factory=list)  # key, kind, reason: left out, or not decodable
    exact_duplicates: int = 0  # pictures equal, byte for byte or pixel for pixel, to an earlier one
    near_duplicates: int = 0  # other pictures near to an earlier one
    duplicate_groups: list[list[str]] = field(default_factory=list)  # keys, exact
    leakage: dict[str, dict[str, Any]] = field(default_factory=dict)  # "train/test" -> exact, near, examples
    imbalance: float | None = None  # records of the largest class over those of the smallest
    suspicious_classes: dict[str, str] = field(default_factory=dict)  # name -> why
    notes: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        found = []
        if self.broken:
            kinds = Counter(b["kind"] for b in self.broken).most_common()
            found.append(f"{len(self.broken)} broken items: " + ", ".join(f"{n} {k}" for k, n in kinds))
        for pair, leak in self.leakage.items():
            if leak["exact"] or leak["near"]:
                found.append(f"{pair}: {leak['exact']} pictures are in both, {leak['near']} nearly so")
        if self.exact_duplicates:
            found.append(f"{self.exact_duplicates} pictures repeat an earlier one exactly")
        if self.captions.get("empty"):
            found.append(f"{self.captions['empty']} records have an empty caption")
        if self.imbalance and self.imbalance >= 10:
            found.append(f"the largest class has {self.imbalance:.0f} times the records of the smallest")
        return found + [f"class {name!r}: {why}" for name, why in self.suspicious_classes.items()]

    def to_json(self) -> dict[str, Any]:
        """All of it, for `json.dumps`."""
        return {**asdict(self), "problems": self.problems}

    def write_broken(self, path: Path | str) -> None:
        """One JSON line an item that is broken."""
        lines = [json.dumps(item, ensure_ascii=False) for item in self.broken]
        Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(title=self.name, show_header=False, title_justify="left")
        few = lambda counts: (
            ", ".join(f"{k} {n}" for k, n in list(counts.items())[:8])
            + (f", ... ({len(counts)} in all)" if len(counts) > 8 else "")
        )
        rows = {
            "records": f"{self.records}",
            "splits": few(self.splits),
            "classes": few(self.classes),
            "domains": few(self.domains),
            "captions": ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in self.captions.items() if k != "commonest"),
            "duplicates": f"{self.exact_duplicates} exact, {self.near_duplicates} near",
            "leakage": ", ".join(f"{p} {v['exact']} exact, {v['near']} near" for p, v in self.leakage.items()),
        }
        for name, value in rows.items():
            if value:
                table.add_row(name, value)
        lines = [Text(f"! {p}", style="yellow") for p in self.problems] or [Text("no problems found", style="green")]
        lines += [Text(f"  {b['key']}: {b['reason']}") for b in self.broken[:SHOWN]]
        return Group(table, *lines, *(Text(n) for n in self.notes))


def check(data: Records | str | Path, threads: int = 1, near: int = NEAR) -> Report:
    """Read every record, decode every picture, compare them all: exactly by pixels, nearly by hashes.

    `near` is the Hamming distance of 64-bit difference hashes up to which two pictures count as near duplicates; flat
    pictures, whose hash says nothing, are compared exactly only. Each split is compared with the test split and val.
    """
    records = load(data) if isinstance(data, str | Path) else data
    report = Report(records.card.name, len(records), records.splits, notes=list(records.report.notes))
    report.broken = [asdict(s) for s in records.report.skips]
    names = records.class_names
    if names and "label" in records.columns:
        counts = Counter(names[v] for v in records.labels if v is not None)
        report.classes = {n: counts.get(n, 0) for n in sorted(names, key=lambda n: -counts.get(n, 0))}
        present = [n for n in report.classes.values() if n]
        report.imbalance = max(present) / min(present) if present else None
    report.suspicious_classes = suspicious(report.classes or dict.fromkeys(names, 1))
    if "domain" in records.columns:
        report.domains = dict(Counter(str(d) for d in records.column("domain")).most_common())
    if "text" in records.columns:
        report.captions = caption_statistics(records.column("text"))
    keys, splits = records.keys, records.column("split") if records.splits else [None] * len(records)
    contents, hashes, thumbs, sound = _pictures(records, keys, report, threads)
    _duplicates(report, keys, contents, sound)
    groups = {s: np.array([i for i in sound if splits[i] == s], dtype=np.int64) for s in records.splits}
    for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
        if one in groups and other in groups:
            report.leakage[f"{one}/{other}"] = _leakage(
                groups[one], groups[other], keys, contents, hashes, thumbs, near
            )
    own = hashes[sound], thumbs[sound]
    pairs = near_pairs(own[0], own[0], near, (own[1], own[1]), same=True)
    alike = {sound[j] for i, j in pairs if contents[sound[i]] != contents[sound[j]]}
    report.near_duplicates = len(alike)
    return report


def only_sound(records: Records, on_broken: OnBroken = "skip", threads: int = 1) -> Records:
    """The records whose pictures can be decoded; the others join `.report`, or are refused with `BadData`."""
    look = lambda i: _problem(records, i)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        found = list(pool.map(look, range(len(records))) if threads > 1 else map(look, range(len(records))))
    sound = records.subset([i for i, problem in enumerate(found) if problem is None])
    skips = [*records.report.skips, *(p for p in found if p is not None)]
    sound.report = ReadReport(len(sound), skips, list(records.report.notes))
    if on_broken == "refuse":
        sound.report.refuse(records.card.name)
    return sound


def _problem(records: Records, index: int) -> Skip | None:
    try:
        _look(records[index])
    except BrokenPicture as broken:
        return Skip(records.columns["key"][int(records.index[index])], "broken picture", broken.reason)
    return None


def caption_statistics(captions: Sequence[str | None]) -> dict[str, Any]:
    """Counts of captions, their length in words, the empty, the repeated, and those with letters lost in decoding."""
    said = [c.strip() for c in captions if c is not None and c.strip()]
    words = np.array([len(c.split()) for c in said] or [0])
    repeated = Counter(said)
    return {
        "captions": len(said),
        "empty": len(captions) - len(said),
        "distinct": len(repeated),
        "repeated": len(said) - len(repeated),
        "words_min": int(words.min()),
        "words_median": float(np.median(words)),
        "words_mean": round(float(words.mean()), 2),
        "words_max": int(words.max()),
        "undecodable": sum("\ufffd" in c for c in said),
        "commonest": dict(repeated.most_common(5)),
    }


def suspicious(names: Iterable[str]) -> dict[str, str]:
    """Class names that a text tower will not understand, or that stand for one class twice: {name: why}."""
    found: dict[str, str] = {}
    seen: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[\s_-]+", " ", name).strip().casefold()
        if WORDNET.match(name):
            found[name] = "a WordNet id, not words: give names in classnames.txt"
        elif not plain or plain.isdigit():
            found[name] = "a number, not words"
        elif plain in seen:
            found[name] = f"differs from {seen[plain]!r} only in case or spacing"
        elif "_" in name:
            found[name] = "has underscores: write spaces"
        elif name != name.strip():
            found[name] = "begins or ends with a space"
        seen.setdefault(plain, name)
    return found


def difference_hash(grey: Tensor) -> np.ndarray:
    """uint64 [N] of grey pictures [N, 8, 9]: a bit for each pixel that is darker than its right neighbour."""
    bits = (grey[:, :, :-1] < grey[:, :, 1:]).flatten(1).numpy()  # [N, 64]
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)


def near_pairs(
    one: np.ndarray,
    other: np.ndarray,
    distance: int,
    thumbs: tuple[np.ndarray, np.ndarray] | None = None,
    same: bool = False,
) -> list[tuple[int, int]]:
    """(i, j) with hashes uint64 [N], [M] at most `distance` bits apart, the first such i for each j; `same` asks i < j.

    `thumbs` (uint8 [N, K], [M, K]) must then differ by `ALIKE` of 255 at most in the mean, since simple drawings share
    hashes. A hash is cut into `distance + 1` bands: near hashes agree in one of them at least, so only such pairs are
    compared. Hashes of flat pictures (under 6 or over 58 bits) are left out.
    """

    def band(hashes: np.ndarray, low: int, high: int) -> np.ndarray:
        return (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)

    usual = lambda h: (np.bitwise_count(h) >= 6) & (np.bitwise_count(h) <= 58)
    rows, columns = np.flatnonzero(usual(one)), np.flatnonzero(usual(other))
    edges = np.linspace(0, 64, distance + 2).astype(int).tolist()
    first: dict[int, int] = {}
    for low, high in zip(edges, edges[1:]):
        order = rows[np.argsort(band(one[rows], low, high), kind="stable")]
        keys, wanted = band(one[order], low, high), band(other[columns], low, high)
        starts, stops = np.searchsorted(keys, wanted), np.searchsorted(keys, wanted, side="right")
        for j, start, stop in zip(columns.tolist(), starts.tolist(), stops.tolist()):
            candidates = order[start:stop]
            hits = candidates[np.bitwise_count(one[candidates] ^ other[j]) <= distance]
            hits = hits[hits < j] if same else hits
            if thumbs is not None and len(hits):
                apart = np.abs(thumbs[0][hits].astype(np.int16) - thumbs[1][j].astype(np.int16)).mean(1)
                hits = hits[apart <= ALIKE]
            if len(hits):
                first[j] = min(int(hits.min()), first.get(j, len(one)))
    return sorted((i, j) for j, i in first.items())


def _pictures(
    records: Records, keys: Sequence[str], report: Report, threads: int
) -> tuple[list[bytes | None], np.ndarray, np.ndarray, list[int]]:
    """(content hash, difference hash uint64 [N], small copy uint8 [N, 216], numbers of the sound) of all pictures.

    The others are reported.
    """

    def look(i: int) -> tuple[bytes, Tensor] | Skip | None:
        try:
            return _look(records[i])
        except BrokenPicture as broken:
            return Skip(keys[i], "broken picture", broken.reason)

    contents: list[bytes | None] = [None] * len(records)
    hashes, thumbs = np.zeros(len(records), dtype=np.uint64), np.zeros((len(records), 216), dtype=np.uint8)
    sound, small, where = [], [], []

    def flush() -> None:
        if small:
            batch = torch.stack(small)  # [n, 3, 8, 9]
            hashes[where] = difference_hash(batch.mean(1))
            thumbs[where] = batch.round().to(torch.uint8).flatten(1).numpy()
            small.clear(), where.clear()

    with ThreadPoolExecutor(max(1, threads)) as pool:
        for start in range(0, len(records), 1024):
            numbers = range(start, min(start + 1024, len(records)))
            for i, found in zip(numbers, pool.map(look, numbers) if threads > 1 else map(look, numbers)):
                if isinstance(found, Skip):
                    report.broken.append(asdict(found))
                elif found is not None:
                    contents[i] = found[0]
                    sound.append(i), where.append(i), small.append(found[1])
            flush()
    return contents, hashes, thumbs, sound


def _look(record: Record) -> tuple[bytes, Tensor] | None:
    """(content hash of the pixels, small copy float [3, 8, 9]) of a record's picture, or of the frames of its clip."""
    if record.image is None:
        raise BrokenPicture(None, "no picture: the record has none")
    frames = record.image if isinstance(record.image, list) else [record.image]
    if not frames:
        raise BrokenPicture(None, "a clip without frames")
    digest, small = hashlib.blake2b(digest_size=16), []
    for frame in frames:
        pixels = _rgb(frame)
        digest.update(f"{tuple(pixels.shape)}".encode())
        digest.update(pixels.numpy().tobytes())
        small.append(pixels)
    middle = small[len(small) // 2].float()[None]
    return digest.digest(), F.interpolate(middle, (8, 9), mode="area")[0]


def _rgb(frame: Any) -> Tensor:
    """uint8 [3, H, W] at full size, by the shorter route where there is one."""
    data = frame if isinstance(frame, bytes) else None
    if isinstance(frame, Path) and frame.exists():
        data = frame.read_bytes()
    pixels = _decode(data, 89_000_000) if data else None
    if pixels is None:
        picture = flatten(open_picture(frame), GREY)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
    return (_over(pixels, GREY) if len(pixels) == 4 else pixels).contiguous()


def _duplicates(report: Report, keys: Sequence[str], contents: Sequence[bytes | None], sound: Sequence[int]) -> None:
    groups: dict[bytes | None, list[int]] = defaultdict(list)
    for i in sound:
        groups[contents[i]].append(i)
    repeated = [g for g in groups.values() if len(g) > 1]
    report.exact_duplicates = sum(len(g) - 1 for g in repeated)
    report.duplicate_groups = [[keys[i] for i in g] for g in sorted(repeated, key=len, reverse=True)[:SHOWN]]


def _leakage(
    one: np.ndarray,
    other: np.ndarray,
    keys: Sequence[str],
    contents: Sequence[bytes | None],
    hashes: np.ndarray,
    thumbs: np.ndarray,
    near: int,
) -> dict[str, Any]:
    """How many pictures of `other` are also in `one`: exactly, or nearly."""
    known: dict[bytes | None, int] = {}
    for i in one.tolist():
        known.setdefault(contents[i], i)
    exact = [(known[contents[j]], j) for j in other.tolist() if contents[j] in known]
    same = {j for _, j in exact}
    found = near_pairs(hashes[one], hashes[other], near, (thumbs[one], thumbs[other]))
    alike = [(int(one[i]), int(other[j])) for i, j in found]
    alike = [(i, j) for i, j in alike if j not in same]
    examples = [[keys[i], keys[j]] for i, j in (exact + alike)[:SHOWN]]
    return {"exact": len(exact), "near": len(alike), "examples": examples}
