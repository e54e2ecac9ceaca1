"""What every task shares: a dataclass of options that turns a model and a data set into metrics with intervals."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from emblema.core.batch import Dataset
from emblema.core.card import TaskCard as Card  # so that this file is not taken for a task
from emblema.core.errors import BadData
from emblema.tasks.protocols import Protocol
from emblema.tasks.statistics import Interval

Model = Any  # an `emblema.Model`, or anything with its methods; the tasks stand below it


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
        """Measure `data`; tasks that learn something take `train` and `val` besides."""
        raise NotImplementedError(f"{type(self).__name__} must define run()")

    def options(self) -> dict[str, Any]:
        """The part of the fields that decides what is measured."""
        return {}

    def template_set(self, model: Model, data: Dataset) -> str:
        """Identifier of the template set, if the task uses one."""
        return ""

    def protocol(self, model: Model, data: Dataset, split: str) -> Protocol:
        return Protocol(
            name=f"{self.card.name}/{data.card.name}/{split}",
            task=self.card.name,
            data=data.card.name,
            split=split,
            metric=self.card.metric,
            templates=self.template_set(model, data),
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
    found = list(column(data, "label"))
    missing = sum(label is None or label < 0 for label in found)
    if missing or not found:
        what = f"{missing} of {len(found)} records of {data.card.name} have no label" if found else "the split is empty"
        raise BadData(f"{what}: classification needs one each. Sets with captions only suit `evaluate retrieval`.")
    return torch.tensor(found, dtype=torch.long)


def column(data: Dataset, name: str) -> list[Any]:
    """One field of all records; sets that keep columns are not asked for their pictures."""
    if name == "label" and hasattr(data, "labels"):
        return list(data.labels)  # type: ignore[attr-defined]
    if name in getattr(data, "columns", ()):
        return data.column(name)  # type: ignore[attr-defined]
    return [getattr(data[i], name, None) for i in range(len(data))]
