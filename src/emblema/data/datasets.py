"""What every reader returns: records by columns, views of them by index, and a report of what was left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np

from emblema.core.batch import Dataset, Record
from emblema.core.card import DatasetCard
from emblema.core.errors import BadData, UnknownName

OnBroken = Literal["skip", "refuse"]
SPLITS = {  # what folders, tables and files call them -> what we call them
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
SHOWABLE = ("label", "labels", "boxes", "mask", "text", "texts")  # what `Records.showing` may change


@dataclass(frozen=True)
class Skip:
    """One item that a reader left out."""

    key: str
    kind: str  # for counting: "missing file", "zero bytes", "empty caption", "not UTF-8", "broken picture", ...
    reason: str


@dataclass
class ReadReport:
    """What a reader took and what it left out, never silently."""

    read: int = 0
    skips: list[Skip] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was taken, but not as it stood

    def add(self, key: str, kind: str, reason: str) -> None:
        self.skips.append(Skip(key, kind, reason))

    def counts(self) -> dict[str, int]:
        """Left-out items by kind, the commonest first."""
        return dict(Counter(s.kind for s in self.skips).most_common())

    def write(self, path: Path | str) -> None:
        """One JSON line an item that was left out."""
        lines = [json.dumps(asdict(skip), ensure_ascii=False) for skip in self.skips]
        Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def refuse(self, name: str) -> None:
        """Raise `BadData` when anything was left out."""
        if self.skips:
            first = "; ".join(f"{s.key}: {s.reason}" for s in self.skips[:3])
            raise BadData(f"{name}: {self}. First: {first}. Mend them, or read with on_broken='skip'.")

    def __str__(self) -> str:
        kinds = ", ".join(f"{n} {kind}" for kind, n in self.counts().items())
        return f"{self.read} records" + (f", {len(self.skips)} items left out ({kinds})" if self.skips else "")


class Records:
    """A `Dataset`: records read from columns, one at a time; pictures stay paths or bytes until they are needed.

    `columns` are equally long sequences named as the fields of `Record`, and any others ("split", "novel", "group",
    ...), which `column` and `where` reach. All views (`split`, `subset`, `where`, ...) share them.
    """

    class_facts: Mapping[str, Mapping[str, Any]] = {}  # class name -> what files say of it: "novel", "frequency"

    def __init__(
        self,
        card: DatasetCard,
        columns: Mapping[str, Sequence[Any]],
        class_names: Sequence[str] = (),
        report: ReadReport | None = None,
        index: Sequence[int] | np.ndarray | None = None,
        relabel: Mapping[int, int] | None = None,
    ):
        sizes = {name: len(values) for name, values in columns.items()}
        if "key" not in sizes or len(set(sizes.values())) != 1:
            raise BadData(f"columns need a 'key' and one length, got {sizes}")
        self.card, self.columns, self.class_names = card, dict(columns), list(class_names)
        self.report = report or ReadReport(read=sizes["key"])
        self.index = np.arange(sizes["key"]) if index is None else np.asarray(index, dtype=np.int64)
        self._relabel = relabel  # label in the columns -> label here, after `only_classes`
        self._shown: Callable[[Record], Record] | None = None  # see `showing`

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Record:
        if not -len(self) <= index < len(self):  # also what ends a for loop
            raise IndexError(f"{self.card.name} has {len(self)} records, no number {index}")
        record = self.record(int(self.index[index]))
        return self._shown(record) if self._shown else record

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.card.name}: {len(self)} records, {len(self.class_names)} classes>"

    def record(self, row: int) -> Record:
        """The record of a row of the columns."""
        at = lambda name: self.columns[name][row] if name in self.columns else None
        label = at("label")
        return Record(
            key=self.columns["key"][row],
            image=at("image"),
            text=at("text"),
            texts=tuple(at("texts") or ()),
            label=self._label(label),
            labels=tuple(at("labels") or ()),
            domain=at("domain"),
            boxes=at("boxes"),
            mask=at("mask"),
        )

    def _label(self, label: int | None) -> int | None:
        if label is None or label < 0:
            return None
        return self._relabel[int(label)] if self._relabel is not None else int(label)

    @property
    def keys(self) -> list[str]:
        return self.column("key")

    @property
    def labels(self) -> list[int | None]:
        """The label of each record, read without its picture; None where it has none."""
        if "label" not in self.columns:
            return [None] * len(self)
        if self._shown:
            return [record.label for record in self]
        return [self._label(v) for v in self.column("label")]

    def column(self, name: str) -> list[Any]:
        """One column's values in the order of the records."""
        if self._shown and name in SHOWABLE:
            return [getattr(record, name) for record in self]
        if name not in self.columns:
            raise UnknownName(f"column of {self.card.name}", name, list(self.columns))
        values = self.columns[name]
        if take := getattr(values, "take", None):  # an Arrow column, all at once
            return take(self.index)
        return [values[int(i)] for i in self.index]

    def subset(self, indices: Iterable[int] | np.ndarray) -> Self:
        """The records at these positions, in this order."""
        return self._view(self.index[np.asarray(list(indices), dtype=np.int64)])

    def where(self, **wanted: Any) -> Self:
        """The records whose columns equal the given values, or are among them: `where(novel=False, domain=("noto",))`.

        `where(split="train")` is allowed as is, but see `split`.
        """
        keep = np.ones(len(self), dtype=bool)
        for name, value in wanted.items():
            among = set(value) if isinstance(value, list | tuple | set | frozenset) else {value}
            keep &= np.fromiter((v in among for v in self.column(name)), dtype=bool, count=len(self))
        return self._view(self.index[keep])

    @property
    def splits(self) -> dict[str, int]:
        """Records by split; empty where the set knows none."""
        return dict(Counter(self.column("split"))) if "split" in self.columns else {}

    def split(self, name: str) -> Self:
        """The records of one split. Raises `BadData` when there is none, or when it would train on evaluation data."""
        name = SPLITS.get(name, name)
        if name == "train" and not self.card.trainable:
            raise BadData(f"{self.card.name} is for evaluation only: it has no training split, by its card")
        if name not in self.splits:
            known = ", ".join(f"{k} ({n})" for k, n in sorted(self.splits.items())) or "none"
            raise BadData(f"{self.card.name} has no split {name!r}; its splits: {known}")
        return self.where(split=name)

    def only_classes(self, names: Iterable[str | int]) -> Self:
        """The records of these classes; labels count through `names` in their order (base-to-novel protocols)."""
        wanted = [self.class_names.index(n) if isinstance(n, str) else int(n) for n in names]
        to_new = {old: new for new, old in enumerate(wanted)}
        labels = self.labels
        keep = np.fromiter((v in to_new for v in labels), dtype=bool, count=len(self))
        before = self._relabel or {i: i for i in range(len(self.class_names))}
        relabel = {column: to_new[here] for column, here in before.items() if here in to_new}
        view = self._view(self.index[keep])
        view._relabel, view.class_names = relabel, [self.class_names[i] for i in wanted]
        return view

    def showing(self, change: Callable[[Record], Record], class_names: Sequence[str] | None = None) -> Self:
        """The records as `change` shows their boxes, masks, captions and labels (a protocol that hides some)."""
        view = self._view(self.index)
        view._shown = change
        view.class_names = list(self.class_names if class_names is None else class_names)
        return view

    def alone(self) -> Self:
        """These records with no other within reach: a set of their own, whose columns hold nothing else.

        Paths stay paths; pictures that lie in a table are copied.
        """
        view = self._view(np.arange(len(self)))
        view.columns = {name: only(values, self.index) for name, values in self.columns.items()}
        view.report = ReadReport(read=len(self))
        return view

    def novel_classes(self) -> list[str]:
        """The names of the classes marked novel, in order: themselves, or all of their records."""
        return [n for i, n in enumerate(self.class_names) if i in self._novel()]

    def base_classes(self) -> list[str]:
        return [n for i, n in enumerate(self.class_names) if i not in self._novel()]

    def _novel(self) -> set[int]:
        told = {i for i, name in enumerate(self.class_names) if self.class_facts.get(name, {}).get("novel")}
        if told or "novel" not in self.columns:
            return told
        return {v for v, new in zip(self.labels, self.column("novel")) if new and v is not None}

    def _view(self, index: np.ndarray) -> Self:
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view.index = index
        return view


def columns(data: Dataset, *names: str) -> list[list[Any]]:
    """Fields of all records. Records that must be made to be read (scenes) are made once for all of them."""
    kept = getattr(data, "columns", {})
    found: dict[str, list[Any]] = {}
    for name in names:
        if name == "label" and hasattr(data, "labels"):
            found[name] = list(data.labels)  # type: ignore[attr-defined]
        elif name in kept:
            found[name] = data.column(name)  # type: ignore[attr-defined]
        elif "image" in kept:  # all that the set has is in columns
            found[name] = [None] * len(data)
    if made := [n for n in names if n not in found]:
        rows = [tuple(getattr(data[i], n, None) for n in made) for i in range(len(data))]
        found |= {n: [row[k] for row in rows] for k, n in enumerate(made)}
    return [found[name] for name in names]


def only(values: Sequence[Any], rows: np.ndarray) -> Sequence[Any]:
    """Some rows of a column as a column of its own; columns that compute their values say how with `only`."""
    if narrow := getattr(values, "only", None) or getattr(values, "take", None):
        return narrow(rows)
    return [values[int(i)] for i in rows]


D = TypeVar("D")


def trainable(dataset: D) -> D:
    """The data set, if it may be trained on; `BadData` when it is for evaluation only or holds test records."""
    card = dataset.card  # type: ignore[attr-defined]
    if not card.trainable:
        raise BadData(f"{card.name} is for evaluation only (its card says trainable=False): train on another set")
    if isinstance(dataset, Records) and (tests := dataset.splits.get("test", 0)):
        raise BadData(f"{tests} of these {len(dataset)} records of {card.name} are test records: take .split('train')")
    return dataset


def collect(
    name: str, items: Iterable[Mapping[str, Any] | Skip], on_broken: OnBroken, class_names: Sequence[str] | None = None
) -> Records:
    """Records from a reader's items: mappings named as columns, `label` a name or a number, or `Skip`s to report.

    Repeated keys get "#2", "#3", ... so that a key names one record. Raises `BadData` when nothing is left, or when
    anything was left out and `on_broken` is "refuse".
    """
    report, rows, seen = ReadReport(), [], Counter[str]()
    for item in items:
        if isinstance(item, Skip):
            report.skips.append(item)
            continue
        key = str(item["key"])
        seen[key] += 1
        rows.append({**item, "key": key if seen[key] == 1 else f"{key}#{seen[key]}"})
    report.read = len(rows)
    if repeated := sum(n > 1 for n in seen.values()):
        report.notes.append(f"{repeated} keys came more than once and were numbered")
    if on_broken == "refuse":
        report.refuse(name)
    if not rows:
        first = "; ".join(f"{s.key}: {s.reason}" for s in report.skips[:3])
        raise BadData(f"{name}: no record could be read ({report}){f'. First: {first}' if first else ''}")
    columns = {c: [row.get(c) for row in rows] for c in dict.fromkeys(c for row in rows for c in row)}
    columns = {c: values for c, values in columns.items() if any(v is not None for v in values)}
    names = list(class_names or ())
    if "label" in columns:
        columns["label"], names = encode_labels(columns["label"], names)
    if "labels" in columns:
        flat, names = encode_labels([v for row in columns["labels"] for v in row or ()], names)
        numbers = iter(flat)
        columns["labels"] = [tuple(next(numbers) for _ in row or ()) for row in columns["labels"]]
    splits = {}
    if "split" in columns:
        columns["split"] = [SPLITS.get(str(s).lower(), s) for s in columns["split"]]
        splits = dict(Counter(columns["split"]))
    task = "classification" if names and "text" not in columns else "image-text"
    card = DatasetCard(name=name, title=name, task=task, classes=len(names), sizes=splits or {"all": len(rows)})
    return Records(card, columns, names, report)


def encode_labels(labels: Sequence[Any], class_names: Sequence[str] = ()) -> tuple[list[int | None], list[str]]:
    """(class numbers, class names) from names, numbers, or texts of numbers.

    Numbers index `class_names`; without names the classes are called by their numbers. Raises `BadData` on a number
    out of range.
    """
    known = [v for v in labels if v not in (None, "")]
    if all(isinstance(v, int | np.integer) or (isinstance(v, str) and v.lstrip("-").isdigit()) for v in known):
        numbers = [int(v) if v not in (None, "") else None for v in labels]
        top = max((n for n in numbers if n is not None), default=-1)
        names = list(class_names) or [str(i) for i in range(top + 1)]
        if top >= len(names):
            raise BadData(f"label {top} but {len(names)} class names: labels count from 0")
        return numbers, names
    names = list(class_names) or sorted({str(v) for v in known})
    number = {n: i for i, n in enumerate(names)}
    if unknown := sorted({str(v) for v in known} - number.keys()):
        raise BadData(f"labels that are no class name: {unknown[:5]}")
    return [number[str(v)] if v not in (None, "") else None for v in labels], names
