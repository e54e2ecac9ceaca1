"""What a row of the survey's data sets says, and what a layout of its files is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Layout:
    """One way in which a set lies on disk: a file of `data/layouts` and what it is told."""

    reader: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)  # split -> records, when whole


@dataclass(frozen=True, kw_only=True)
class SurveySet:
    """A row: `role` is "evaluation", "image-text" or "auxiliary"; `train` and `test` are the survey's counts."""

    name: str
    title: str
    year: int
    task: str
    role: str = "evaluation"
    classes: int = 0
    train: int = 0
    test: int = 0
    metric: str = ""
    layouts: tuple[Layout, ...] = ()
    folders: tuple[str, ...] = ()  # names under which it lies in a folder of data sets, CoOp's first
    template: str = ""  # CoOp's hand-written prompt
    base: tuple[int, int, int] = ()  # type: ignore[assignment]  # base-to-novel: classes, 16-shot images, test images
    size: str = ""  # in words, where it is no count of records
    note: str = ""

    def card(self) -> dict[str, Any]:
        """As `emblema list data` and `emblema data show` tell it."""
        sizes = {k: v for k, v in (("train", self.train), ("test", self.test)) if v}
        found = {"name": self.name, "title": self.title, "year": self.year, "task": self.task, "role": self.role}
        found |= {"classes": self.classes, "sizes": sizes, "metric": self.metric, "size": self.size, "place": "bring"}
        found |= {"source": self.note, "licence": "of its owner", "template": self.template, "base": self.base}
        return found | {"layouts": [x.reader for x in self.layouts], "folders": self.folders}
