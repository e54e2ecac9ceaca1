"""A protocol is what two numbers must share to be compared: a name, and a hash of all of it.

Issue after issue of other toolkits is the same number under another split, template set or number of
captions. So each result line carries the protocol's name and hash; equal hash, comparable numbers.

>>> rule = load("few-shot")               # a file of src/emblema/protocols/, or a path to one's own
>>> rule.on("emblem-food", shots=(16,))   # what a result line carries: the rule, on one data set
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from emblema.core.errors import BadData, UnknownName

FOLDER = Path(__file__).parent.parent / "protocols"
SUFFIXES = (".yaml", ".yml", ".toml")
TESTS = ("split", "base and novel", "other sets", "domains")
SAID = ("title", "section", "real", "rules")  # for readers: not part of the hash
FIRST = ("name", "task", "data", "split", "metric", "templates", "seeds", "resolution", "options")  # always hashed


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything that decides what is measured, and nothing of the model that is measured."""

    name: str  # for readers, e.g. "zero-shot/emblem-objects/test"
    task: str
    data: str  # of a result line; "" in a file, which names `sets`
    split: str
    metric: str  # the headline
    templates: str = ""  # identifier and content hash, see `template_id`
    seeds: tuple[int, ...] = (0,)
    resolution: int | None = None  # pixels the pictures are stored or resized to by the set, if it says so
    options: Mapping[str, Any] = field(default_factory=dict)  # of the task: pool, level, ...
    # -- what is learnt from; hashed where it is not the default
    sets: tuple[str, ...] = ()  # the data sets of the suite; of "other sets" the first is learnt from
    shots: tuple[int | None, ...] = ()  # training pictures a class: 0 none, None all
    validation: int | None = 4  # most validation pictures a class; None: all
    classes: str = "all"  # learnt from: "all" or "base"
    novel: str = "half"  # which classes are novel: "half" (all after the first ceil(K/2)) or "marked" by the data
    tests: str = "split"  # what is tested, one of TESTS
    unlabelled: bool = False  # the whole training split may be seen without its labels
    hides: tuple[str, ...] = ()  # fields of a record that training must not see: "boxes", "mask", "label"
    # -- for readers
    title: str = ""
    section: str = ""
    real: tuple[str, ...] = ()  # the sets that the papers use
    rules: tuple[str, ...] = ()  # what the settings above mean, and where they come from

    def parts(self) -> dict[str, Any]:
        """What is hashed. A field that a later version adds is left out at its default, so that old hashes stand."""
        default = {f.name: f.default for f in fields(self)}
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name in FIRST or (f.name not in SAID and getattr(self, f.name) != default[f.name])
        }

    def canonical(self) -> str:
        """JSON with sorted keys and no spaces: the same text wherever it is written."""
        return json.dumps(self.parts(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    @property
    def hash(self) -> str:
        """12 hexadecimal digits of SHA-256."""
        return short_hash(self.canonical())

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "hash": self.hash, **{k: v for k, v in self.parts().items() if k != "name"}}

    def on(self, data: str, **changes: Any) -> Protocol:
        """The rule on one data set: what a result line carries. `changes` are other fields, e.g. `shots=(16,)`."""
        name = f"{self.name}/{data}"
        if shots := changes.get("shots"):
            name += f"/{'-'.join('all' if s is None else str(s) for s in shots)}-shot"
        sets = self.sets if self.tests == "other sets" else ()
        return replace(self, **{"name": name, "data": data, "sets": sets} | changes)


def names() -> list[str]:
    return sorted(p.stem for p in FOLDER.iterdir() if p.suffix in SUFFIXES)


def load(name_or_path: str | Path) -> Protocol:
    """A protocol by its name (`emblema list protocols`) or from a YAML or TOML file.

    Raises `UnknownName` for what is neither, and `BadData` for a file that is no protocol.
    """
    name = str(name_or_path)
    if Path(name).suffix in SUFFIXES:
        if not Path(name).exists():
            raise BadData(f"no file {name}: give the path of a protocol, or one of {', '.join(names())}")
        return _read(Path(name))
    if name not in names():
        raise UnknownName("protocol or .yaml file", name, names())
    return _shipped(name)


@cache
def _shipped(name: str) -> Protocol:
    return _read(FOLDER / f"{name}.yaml")


def _read(path: Path) -> Protocol:
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".toml":
            import tomllib

            said = tomllib.loads(text)
        else:
            import yaml

            said = yaml.safe_load(text)
    except ValueError as error:
        raise BadData(f"{path} cannot be read: {error}") from None
    except Exception as error:  # yaml's own
        raise BadData(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    return from_json(said, str(path))


def from_json(said: Any, where: str = "the protocol") -> Protocol:
    """A protocol from what a file says. Names are those of the fields; `data` is one set or the list of `sets`."""
    known = [f.name for f in fields(Protocol)]
    if not isinstance(said, Mapping):
        raise BadData(f"{where} must be a mapping of {', '.join(known)}; got {type(said).__name__}")
    said = dict(said)
    if unknown := sorted(said.keys() - {*known, "hash"}):
        raise BadData(f"{where}: no field {', '.join(map(repr, unknown))}; fields: {', '.join(known)}")
    if missing := [k for k in ("name", "task", "metric") if not said.get(k)]:
        raise BadData(f"{where} lacks {', '.join(missing)}")
    said.pop("hash", None)
    if isinstance(said.get("data"), list):
        said |= {"sets": said["data"], "data": ""}
    said = {k: tuple(v) if isinstance(v, list) else v for k, v in said.items()}
    if "shots" in said:
        shots = said["shots"] if isinstance(said["shots"], tuple) else (said["shots"],)
        said["shots"] = tuple(None if s == "all" else s for s in shots)
    protocol = Protocol(**{"data": "", "split": "test"} | said)
    choices = {"tests": TESTS, "classes": ("all", "base"), "novel": ("half", "marked")}
    for name, allowed in choices.items():
        if getattr(protocol, name) not in allowed:
            raise BadData(f"{where}: {name} is {getattr(protocol, name)!r}; one of {', '.join(allowed)}")
    if wrong := [s for s in protocol.shots if s is not None and (not isinstance(s, int) or s < 0)]:
        raise BadData(f"{where}: shots are whole numbers from 0 on, or all; got {wrong}")
    return protocol


def cards() -> list[dict[str, Any]]:
    """All shipped protocols, for lists: fields, hash, and what they are for."""
    return [card_of(load(name)) for name in names()]


def card_of(protocol: Protocol) -> dict[str, Any]:
    return protocol.to_json() | {name: getattr(protocol, name) for name in (*SAID, "sets", "shots")}


def template_id(name: str, templates: Sequence[str]) -> str:
    """A template set's name with the hash of its texts: a renamed or edited set is another one."""
    return f"{name}@{short_hash(json.dumps(list(templates), ensure_ascii=True))[:8]}"


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
