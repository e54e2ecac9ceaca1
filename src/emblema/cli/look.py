"""Verbs that look: list, show, data. Cards only; torch is not imported."""

from __future__ import annotations

import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from emblema.cli.common import Fails, parser_of, table
from emblema.core import find
from emblema.core.errors import EmblemaError, UnknownName

HERE = Path(__file__).parent.parent
DATA_VERBS = ("list", "show", "check", "build")
LISTS = (*find.FAMILIES, "data", "tasks", "protocols", "models")


def list_(arguments: list[str], as_json: bool) -> Any:
    parser = parser_of("list", "Systems, data sets, tasks and models, read from their cards.")
    parser.add_argument("what", nargs="?", choices=LISTS, help="one list only")
    parser.add_argument("--by", choices=("family", "section", "year", "framework"), default="family")
    options = parser.parse_args(arguments)
    wanted = (options.what,) if options.what else LISTS
    found = {name: cards_of(name) for name in wanted}
    if as_json:
        return found[options.what] if options.what else found
    systems = [c for name in wanted if name in find.FAMILIES for c in found[name]]
    groups: dict[str, list[dict]] = {}
    if options.by == "family":
        groups = {name: [] for name in wanted if name in find.FAMILIES}
    for card in systems if options.by == "family" else sorted(systems, key=lambda c: str(c.get(options.by, ""))):
        groups.setdefault(str(card.get(options.by, "")), []).append(card)
    for name, cards in groups.items():
        rows = [(c["name"], c["year"], c["section"], c.get("reads", "PIXELS").lower(), c["title"]) for c in cards]
        head = ("system", "year", "survey", "reads", "paper")
        table(head, rows or [("none yet", "", "", "", "")], f"{name} ({len(cards)})")
    if "data" in found:
        _list_data(found["data"])
    if "tasks" in found:
        rows = [(c["name"], c["metric"], c["title"]) for c in found["tasks"]]
        table(("task", "metric", ""), rows, f"tasks ({len(rows)})")
    if "protocols" in found:
        rows = [(c["name"], c["hash"], c["task"], c["metric"], c["title"]) for c in found["protocols"]]
        table(("protocol", "hash", "task", "metric", ""), rows, f"protocols ({len(rows)})")
    if "models" in found:
        rows = [(c["name"], c["where"]) for c in found["models"]]
        table(("model", "where"), rows, f"models ({len(rows)})")
    return found


def cards_of(kind: str) -> list[dict[str, Any]]:
    if kind == "transfer":  # the survey's chapter has systems that are trained as students are
        return find.cards(kind) + [c for c in find.cards("distill") if str(c["section"]).startswith("6.")]
    if kind in find.FAMILIES:
        return find.cards(kind)
    if kind == "tasks":
        from emblema import tasks

        return tasks.cards()
    if kind == "data":
        from emblema.data import catalog, survey

        return [*({**c, "place": "bundled"} for c in catalog.cards()), *(s.card() for s in survey.SETS.values())]
    if kind == "protocols":
        from emblema.tasks import protocols

        return protocols.cards()
    shipped = sorted((HERE / "models").glob("*/config.json"))
    return [
        *({"name": path.parent.name, "where": "ships with the package"} for path in shipped),
        {"name": "FOLDER", "where": "a checkpoint folder of emblema, open_clip or Hugging Face"},
        {"name": "open_clip:ARCHITECTURE/TAG", "where": "needs open_clip and, the first time, the network"},
        {"name": "hf:OWNER/NAME", "where": "from the local hub cache, else the network"},
    ]


def _sizes(card: dict[str, Any]) -> str:
    return ", ".join(f"{split} {n:,}" for split, n in (card.get("sizes") or {}).items()) or "-"


def _list_data(cards: list[dict[str, Any]]) -> None:
    """What is bundled, then the survey's tables: its evaluation sets by task, image-text and auxiliary sets."""
    bundled = [c for c in cards if c["place"] == "bundled"]
    rows = [(c["name"], c.get("task", ""), _sizes(c), c.get("title", "")) for c in bundled]
    table(("data set", "task", "records", ""), rows, f"bundled ({len(rows)})")
    groups: dict[str, list[dict]] = {}
    for card in (c for c in cards if c["place"] == "bring"):
        name = f"{card['role']}: {card['task']}" if card["role"] == "evaluation" else card["role"]
        groups.setdefault(name, []).append(card)
    for name, group in groups.items():
        rows = [
            (c["name"], c["year"], c["classes"] or "-", c["size"] or _sizes(c), c["metric"] or "-", c["title"], _how(c))
            for c in group
        ]
        header = ("data set", "year", "classes", "records", "metric", "", "where")
        table(header, rows, f"{name} ({len(group)}), to be brought")


def _how(card: dict[str, Any]) -> str:
    """How a set of the survey comes here."""
    if card["source"].endswith("not public"):
        return "not public"
    return "--data NAME:PATH" if card["layouts"] else "--data PATH of shards, tables, folders"


def show(arguments: list[str], as_json: bool) -> Any:
    parser = parser_of("show", "Card, equation, settings and command of a system, task, protocol or data set.")
    parser.add_argument("name", help="a name from `emblema list`, or a path to a .py file or a protocol's .yaml")
    name = parser.parse_args(arguments).name
    card, path = find_card(name)
    kind = card["family"]
    if kind == "data":
        return _show_data(card)
    if kind == "protocols":
        return _show_protocol(card)
    from emblema.report.docs import COMMANDS, command, fields_of

    found = fields_of(path) if path else []
    name = card["name"]
    said = command(kind, card) if kind in COMMANDS else f"emblema evaluate {name} --data NAME"
    if as_json:
        return {**card, "fields": found, "command": said}
    print(f"{name}: {card['title']}")
    keys = (
        "paper",
        "year",
        "section",
        "framework",
        "reads",
        "needs",
        "objectives",
        "protocol",
        "metric",
        "claim",
        "oracle",
    )
    for key in keys:
        value = card.get(key)
        if value:
            print(f"  {key:<11}{', '.join(value) if isinstance(value, tuple | list) else value}")
    if card.get("equation"):
        print(f"\n  {card['equation']}\n")
    if found:
        table(("setting", "default", "type", ""), [(f["name"], f["default"], f["type"], f["help"]) for f in found])
    for text in card.get("deviations", ()):
        print(f"  deviates: {text}")
    print(f"\n  {said}")
    if kind == "tasks" and (same := [c for c in cards_of("protocols") if c["name"] == name]):
        print()
        _show_protocol(same[0])
    return None


def _show_protocol(card: dict[str, Any]) -> Any:
    """Every setting of a protocol, its rules, and where it may be run."""
    card = {k: v for k, v in card.items() if k != "family"}
    print(f"protocol {card['name']} ({card['hash']}): {card['title']}")
    shown = {k: v for k, v in card.items() if k not in ("name", "hash", "title", "rules", "data") and v not in ("", {})}
    for key, value in shown.items():
        many = isinstance(value, list | tuple)
        text = ", ".join("all" if v is None else str(v) for v in value) if many else value
        if text not in (None, ""):
            print(f"  {'sets of the papers' if key == 'real' else key:<20}{text}")
    for rule in card["rules"]:
        print(f"  - {rule}")
    return card


def find_card(name: str) -> tuple[dict[str, Any], Path | None]:
    if name.endswith(".py"):
        if not Path(name).exists():
            raise EmblemaError(f"no file {name}: give the path of a .py file that defines a system")
        return find.read_card(Path(name)) | {"family": "pretrain"}, Path(name)
    if name.endswith((".yaml", ".yml", ".toml")):
        from emblema.tasks import protocols

        return protocols.card_of(protocols.load(name)) | {"family": "protocols"}, None
    known = []
    for family in find.FAMILIES:
        for card in find.cards(family):
            known.append(card["name"])
            if card["name"] == name:
                path = HERE / family / f"{name}.py"
                return card, path if path.exists() else None
    for kind in ("tasks", "data", "protocols"):
        for card in cards_of(kind):
            known.append(card["name"])
            if card["name"] == name:
                path = HERE / "tasks" / f"{card['file']}.py" if kind == "tasks" else None
                return card | {"family": kind}, path
    raise UnknownName("system, task, protocol or data set", name, known)


def _show_data(card: dict[str, Any]) -> Any:
    card = {k: v for k, v in card.items() if k != "family"}
    width = max(map(len, card))
    for key, value in card.items():
        if value in ("", (), [], {}, None):
            continue
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        text = _sizes(card) if key == "sizes" else str(shown)
        print(f"{key:<{width}}  {text if len(text) < 900 else text[:900] + ' ...'}")
    return card


# -- data ----------------------------------------------------------------------------------------------------


def data(arguments: list[str], as_json: bool) -> Any:
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        print("usage: emblema data list | show NAME | check [NAME_OR_PATH ...] | check NAME PATH | build [...]")
        return None
    if verb not in DATA_VERBS:
        raise UnknownName("data verb", verb, list(DATA_VERBS))
    if verb == "list":
        return list_(["data", *arguments[1:]], as_json)
    if verb == "build":
        return _build_data(arguments[1:])
    parser = parser_of(
        f"data {verb}", "The card of a data set." if verb == "show" else "Do the files say what the cards say?"
    )
    parser.add_argument("names", nargs=1 if verb == "show" else "*", help="names of bundled sets, paths, or NAME PATH")
    if verb == "check":
        parser.add_argument("--complete", action="store_true", help="a set of the survey must be there in full")
        parser.add_argument("--pictures", action="store_true", help="decode and compare its pictures too")
    options = parser.parse_args(arguments[1:])
    if verb == "check":
        return _check_data(options.names, options.complete, options.pictures)
    return _show_data(_data_card(options.names[0]))


def _data_card(name: str) -> dict[str, Any]:
    from emblema.data import catalog, survey

    for card in catalog.cards():
        if card["name"] == name:
            return card
    if (row := survey.find(name)) and not Path(name).exists():
        from emblema.data.layouts import tell

        return {**row.card(), "layouts": tell(row)}
    records = catalog.load(name)  # a path, or an error that suggests names
    card = {f.name: getattr(records.card, f.name) for f in fields(records.card)}
    return {**card, "class_names": records.class_names[:50], "report": str(records.report)}


def _check_data(names: list[str], complete: bool = False, pictures: bool = False) -> Any:
    """A report a set; what needs a look is said, and nothing is changed. Faults make the command fail."""
    from rich.console import Console

    from emblema.data import catalog, survey
    from emblema.data.check import check
    from emblema.data.verify import verify

    found, fails = [], False
    if len(names) == 2 and names[0] not in catalog.names() and not Path(names[0]).exists():
        names = [f"{survey.find_or_raise(names[0]).name}:{names[1]}"]
    for name in names or [n for n in catalog.names() if n not in catalog.GENERATED]:
        brought = None if name in catalog.names() else catalog.brought(name)
        if brought:
            verdict = verify(*brought, complete=complete)
            Console(file=sys.stdout).print(verdict, soft_wrap=True)
            found.append(verdict.to_json())
            fails = fails or not verdict.ok
        if not brought or (pictures and verdict.ok):
            report = check(name, threads=os.cpu_count() or 1)
            Console(file=sys.stdout).print(report)
            found.append(report.to_json())
            fails = fails or bool(report.broken)
    return Fails(found) if fails else found


def _build_data(arguments: list[str]) -> None:
    from emblema.data.build.__main__ import main as build

    build(arguments)
