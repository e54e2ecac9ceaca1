"""Files are the registry: a method is found by its file's name, its card is read without importing it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from emblema.core.errors import EmblemaError, UnknownName

FAMILIES = ("pretrain", "transfer", "distill")
_ROOT = Path(__file__).parent.parent


@cache
def names(family: str) -> list[str]:
    """Names of the systems of a family: its files, but for `base.py` and those with a leading underscore."""
    files = (_ROOT / family).glob("*.py")
    ours = [f.stem for f in files if f.stem != "base" and not f.stem.startswith("_")]
    return sorted({*ours, *(e.name for e in _entry_points(family))})


@cache
def cards(family: str) -> list[dict[str, Any]]:
    """The cards of a family as dictionaries, read with `ast`: fast, and torch is never imported."""
    found = []
    for name in names(family):
        path = _ROOT / family / f"{name}.py"
        if path.exists():
            found.append(read_card(path) | {"family": family})
        else:
            found.append(_foreign_card(family, name) | {"family": family})
    return found


def _foreign_card(family: str, name: str) -> dict[str, Any]:
    """An entry point's card; one that cannot be imported is listed with its error and stops nobody."""
    try:
        return dict(vars(find(family, name).card))  # type: ignore[attr-defined]
    except Exception as error:  # whatever somebody else's module raises
        said = f"cannot be imported: {error}"
        return {"name": name, "title": said, "paper": "", "year": 0, "section": "", "equation": "", "broken": said}


def read_card(path: Path) -> dict[str, Any]:
    """The literal `card = Card(...)` of the file's class."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            named_card = any(isinstance(t, ast.Name) and t.id == "card" for t in targets)
            if named_card and getattr(node.value.func, "id", "").endswith("Card"):
                return {k.arg: _literal(k.value) for k in node.value.keywords if k.arg}
    raise EmblemaError(f"{path} has no literal `card = Card(...)`: add one to its class")


def find(family: str, name: str) -> type:
    """The class of a system: by name, by path of a `.py` file, or by entry point `emblema.methods`."""
    if name.endswith(".py"):
        return _class_in(_load_file(Path(name)), name)
    for entry in _entry_points(family):
        if entry.name == name:
            target = entry.load()
            return target if isinstance(target, type) else _class_in(target, name)
    if name not in names(family):
        raise UnknownName(f"{family} system", name, names(family))
    return _class_in(importlib.import_module(f"emblema.{family}.{name}"), name)


def _class_in(module: Any, name: str) -> type:
    """The class with a card that the module itself defines (an imported one does not count)."""
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == module.__name__ and "card" in vars(value):
            return value
    raise EmblemaError(f"{name} defines no class with a card: add `card = Card(...)` to its class")


def _load_file(path: Path) -> Any:
    if not path.exists():
        raise EmblemaError(f"no file {path}: give the path of a .py file that defines a system")
    module_name = f"emblema_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _entry_points(family: str) -> list[Any]:
    """Third-party systems. `emblema.methods` is for all families; its extra may name one: `mine [pretrain]`."""
    return [e for e in entry_points(group="emblema.methods") if family in (e.extras or FAMILIES)]


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node).removeprefix("Level.")
