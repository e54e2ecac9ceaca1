"""What every task shares: a dataclass of options that turns a model and a data set into metrics with intervals.

Who is measured shows one of these faces. A `Predictor` scores the classes of the data it is handed: fitted transfer
systems and students. A `Segmenter` and a `Detector` do so for pixels and boxes. An `Embedder` gives vectors of pictures
and of words: `emblema.Model`; class names written into templates make a predictor of it (`tasks/wording.py`).
"""

from __future__ import annotations

import time
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor

from emblema.core.batch import Dataset, Level
from emblema.core.boxes import Boxes
from emblema.core.card import TaskCard as Card  # so that this file is not taken for a task
from emblema.core.errors import BadData
from emblema.data.datasets import columns
from emblema.tasks.protocols import Protocol
from emblema.tasks.statistics import Interval


@typing.runtime_checkable
class Predictor(typing.Protocol):
    """Whoever classifies. The columns are the data's `class_names`; higher is likelier, softmax gives probabilities."""

    def scores(self, data: Dataset) -> Tensor:
        """Logits [N, C] of all records in order."""
        ...


class Embedder(typing.Protocol):
    """Whoever has vectors of pictures and words in one space; `emblema.Model` does."""

    def features(self, data: Dataset, level: Level | str = Level.POOLED) -> Tensor:
        """[N, D] unit; at the level "hidden" [N, width], before the projection."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """[M, D] unit."""
        ...

    def class_vectors(self, labels: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """[C, D] unit."""
        ...


class Segmenter(typing.Protocol):
    """Whoever labels pixels with words: students, and `emblema.Model`."""

    def segment(self, images: Sequence[Image], labels: Sequence[str]) -> Iterable[Tensor]:
        """One for each RGB picture: a label map [H, W] long (numbers in `labels`, 255 for none of them), or scores of
        any size, higher is likelier: [K, h, w], or [K + 1, h, w] where the last plane is "none of them".
        """
        ...


class Detector(typing.Protocol):
    """Whoever finds things named by words: students, and `emblema.Model`."""

    def detect(self, images: Sequence[Image], labels: Sequence[str]) -> Iterable[Boxes]:
        """One for each RGB picture, in its pixels: boxes with `labels` (numbers in `labels`) and `scores`, and with
        `masks` [N, H, W] where it has them. Overlapping boxes of a class are already suppressed.
        """
        ...


Model = Any  # whatever of these the task asks for


@dataclass
class Outcome:
    """What a task found."""

    metrics: dict[str, Interval]
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # per class, per domain, ...
    predictions: list[dict[str, Any]] = field(default_factory=list)  # a few, with their keys, for pages
    sizes: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what a reader must know about the number


@dataclass(kw_only=True)
class Task:
    """Fields are options of the measurement; all of them are part of the protocol."""

    card: ClassVar[Card]

    def run(self, model: Model, data: Dataset, **others: Dataset | None) -> Outcome:
        """Measure `data`; tasks that learn or choose something take `train` and `val` besides."""
        raise NotImplementedError(f"{type(self).__name__} must define run()")

    def splits(self) -> tuple[str, ...]:
        """What `run` wants besides the split that is measured: "train", "val", or both."""
        return ("train", "val") if "train split" in self.card.needs else ()

    def variant(self) -> str:
        """What sets this measurement apart from others of the task, for the protocol's name: "5k", "probe", ..."""
        return ""

    def options(self) -> dict[str, Any]:
        """The part of the fields that decides what is measured."""
        return {}

    def system(self, model: Model) -> str:
        """How the model is used, for a result line that nobody named."""
        return "zero-shot"

    def template_set(self, model: Model, data: Dataset) -> str:
        """Identifier of the template set, if the task uses one."""
        return ""

    def protocol(self, model: Model, data: Dataset, split: str) -> Protocol:
        name = f"{self.card.name}-{self.variant()}" if self.variant() else self.card.name
        return Protocol(
            name=f"{name}/{data.card.name}/{split}",
            task=self.card.name,
            data=data.card.name,
            split=split,
            metric=self.card.metric,
            templates=self.template_set(model, data),
            seeds=(getattr(self, "seed", 0),),
            resolution=getattr(data, "resolution", None),
            options=self.options(),
        )

    def evaluate(self, model: Model, data: Dataset, split: str = "test", **others: Dataset | None) -> dict[str, Any]:
        """Run, and say under which protocol: everything of a result line that is not of the machine."""
        began = time.perf_counter()
        outcome = self.run(model, data, **others)
        protocol = self.protocol(model, data, split)
        return {
            "task": self.card.name,
            "data": data.card.name,
            "split": split,
            "protocol": protocol.to_json(),
            "metrics": {name: interval.to_json() for name, interval in outcome.metrics.items()},
            "seeds": list(protocol.seeds),
            "seconds": round(time.perf_counter() - began, 3),
            "sizes": outcome.sizes,
            "notes": outcome.notes,
            "tables": outcome.tables,
            "predictions": outcome.predictions,
        }


def labels_of(data: Dataset) -> Tensor:
    """The labels [N] of a labelled set."""
    if "annotation" in getattr(data, "columns", {}):
        raise BadData(
            f"the labels of {data.card.name} are what was asked about, not what is seen: `evaluate rare-action`"
        )
    found = list(column(data, "label"))
    missing = sum(label is None or label < 0 for label in found)
    if missing or not found:
        what = f"{missing} of {len(found)} records of {data.card.name} have no label" if found else "the split is empty"
        raise BadData(f"{what}: classification needs one each. Sets with captions only suit `evaluate retrieval`.")
    return torch.tensor(found, dtype=torch.long)


def column(data: Dataset, name: str) -> list[Any]:
    """One field of all records; sets that keep columns are not asked for their pictures."""
    return columns(data, name)[0]


class Renamed:
    """The same pictures under other class names: how a predictor is asked about the nodes of a tree."""

    def __init__(self, data: Dataset, class_names: Sequence[str]):
        self.data, self.card, self.class_names = data, data.card, list(class_names)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int):
        return self.data[index]

    def __getattr__(self, name: str):
        if name in ("data", "__setstate__"):
            raise AttributeError(name)
        return getattr(self.data, name)
