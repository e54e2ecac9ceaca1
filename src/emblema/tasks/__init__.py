"""Survey 3.4: how a vision-language model is measured. A task is a file with a card, like a system.

This module reads cards only and never imports torch.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import Any

from emblema.core.errors import UnknownName
from emblema.core.find import _class_in, read_card

_HERE = Path(__file__).parent


@cache
def cards() -> list[dict[str, Any]]:
    """The cards of all tasks, by name."""
    files = [f for f in sorted(_HERE.glob("*.py")) if "\n    card = TaskCard(" in f.read_text(encoding="utf-8")]
    return [read_card(f) | {"file": f.stem} for f in files]


def names() -> list[str]:
    return [c["name"] for c in cards()]


def find(name: str) -> type:
    """The class of a task."""
    for card in cards():
        if card["name"] == name:
            module = importlib.import_module(f"emblema.tasks.{card['file']}")
            return _class_in(module, name)
    raise UnknownName("task", name, names())
