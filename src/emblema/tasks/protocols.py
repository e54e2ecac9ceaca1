"""A protocol is what two numbers must share to be compared: a name, and a hash of all of it.

Issue after issue of other toolkits is the same number under another split, template set or number of
captions. So each result line carries the protocol's name and hash; equal hash, comparable numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything that decides what is measured, and nothing of the model that is measured."""

    name: str  # for readers, e.g. "zero-shot/emblem-objects/test"
    task: str
    data: str
    split: str
    metric: str  # the headline
    templates: str = ""  # identifier and content hash, see `template_id`
    seeds: tuple[int, ...] = (0,)
    resolution: int | None = None  # pixels the pictures are stored or resized to by the set, if it says so
    options: Mapping[str, Any] = field(default_factory=dict)  # of the task: pool, level, ...

    def canonical(self) -> str:
        """JSON with sorted keys and no spaces: the same text wherever it is written."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    @property
    def hash(self) -> str:
        """12 hexadecimal digits of SHA-256."""
        return short_hash(self.canonical())

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "hash": self.hash, **{k: v for k, v in asdict(self).items() if k != "name"}}


def template_id(name: str, templates: Sequence[str]) -> str:
    """A template set's name with the hash of its texts: a renamed or edited set is another one."""
    return f"{name}@{short_hash(json.dumps(list(templates), ensure_ascii=True))[:8]}"


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
