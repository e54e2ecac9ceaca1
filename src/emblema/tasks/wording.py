"""Which templates a class name is written into: the data set's own unless another set is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emblema.core.errors import BadData, UnknownName


def wording(spec: str, data: Any) -> tuple[str, list[str]]:
    """(identifier, templates) of a named set, of a text file with a template a line, or of the data set."""
    if spec and Path(spec).suffix == ".txt":
        return Path(spec).stem, read_templates(spec)
    from emblema.data import catalog
    from emblema.data.templates import NAMED, templates_for

    if spec and spec not in NAMED and spec not in catalog.names():
        raise UnknownName("template set or .txt file", spec, [*NAMED, *catalog.names()])
    return spec or data.card.name, list(templates_for(spec or data.card.name))


def read_templates(path: str | Path) -> list[str]:
    """The lines of a text file; empty ones and comments (#) are left out."""
    if not Path(path).exists():
        raise BadData(f"no file {path}: give a text file with one template a line, {{}} where the class name goes")
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    wrong = next((line for line in found if "{}" not in line), None)
    if not found or wrong is not None:
        raise BadData(f"{path}: {f'{wrong!r} has no {{}}' if wrong else 'no template in it'}; e.g. a photo of a {{}}.")
    return found
