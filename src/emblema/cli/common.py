"""What the verbs share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emblema.core.errors import BadData


class Fails(list):
    """A document that says no: the command ends with exit code 1."""


def parser_of(verb: str, about: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"emblema {verb}", description=about, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else")
    return parser


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    from emblema.report.tables import terminal

    terminal(header, rows, title)


def words(text: str) -> list[str]:
    """Comma-separated words, or the lines of a text file."""
    if text.endswith(".txt"):
        if not Path(text).exists():
            raise BadData(f"no file {text}: give a text file with a label a line, or the labels themselves")
        return [line for line in map(str.strip, Path(text).read_text(encoding="utf-8").splitlines()) if line]
    return [word for word in (w.strip() for w in text.split(",")) if word]


def without(arguments: list[str], names: tuple[str, ...]) -> list[str]:
    """The arguments less those options and their values."""
    kept, skip = [], False
    for argument in arguments:
        if skip or argument in names:
            skip = argument in names
        elif not argument.startswith(tuple(f"{n}=" for n in names)):
            kept.append(argument)
    return kept
