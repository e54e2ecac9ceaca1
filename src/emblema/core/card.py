"""Cards: what a system, a data set or a task says about itself. Literals, so no import is needed to read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Card:
    """One of the survey's systems. All else about it (lists, docs, tables, tests) is generated from here."""

    name: str  # the file's name
    title: str  # of the paper
    paper: str  # arXiv identifier, or venue
    year: int
    section: str  # of the survey, e.g. "5.1 contrastive"
    equation: str  # what is minimised, in one line
    framework: str = "two-tower"
    reads: Any = "PIXELS"  # a Level
    needs: tuple[str, ...] = ()  # fields of Batch ("texts", "labels", "boxes", "views"), further stages ("values")
    objectives: tuple[str, ...] = ()  # "contrastive", "generative", "alignment"
    claim: str = ""  # one directional statement of the paper, checked in docs/results
    oracle: str = ""  # what its parity test compares with
    protocol: str = "few-shot"  # what it is measured by where nothing is said (transfer)
    closed: bool = False  # learns something for each class, so it cannot name other classes (transfer)
    deviations: tuple[str, ...] = ()  # from paper or official code, each with its reason


@dataclass(frozen=True, kw_only=True)
class DatasetCard:
    """A data set: counts, licence, splits and what it may be used for."""

    name: str
    title: str
    task: str  # "image-text", "classification", "detection", "segmentation", "action"
    licence: str = "of its owner"
    source: str = ""
    classes: int = 0
    sizes: Mapping[str, int] = field(default_factory=dict)  # split -> records
    sha256: str = ""
    trainable: bool = True  # False: evaluation only
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TaskCard:
    """An evaluation task of the survey's section 3.4."""

    name: str
    title: str
    section: str
    metric: str  # the headline metric
    needs: tuple[str, ...] = ()
