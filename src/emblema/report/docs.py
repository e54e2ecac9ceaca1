"""The generated parts of the documents: `python -m emblema.report.docs [--check] [ROOT]`.

README.md holds blocks between `<!-- systems:pretrain -->` and `<!-- /systems:pretrain -->`, and the like for results.
Each system has a page docs/methods/NAME.md, written from its card and its fields; docs/results/ is made of the result
lines in benchmarks/results/. Nothing here imports torch.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emblema.core import find
from emblema.report import claims, evidence, paradigms, tables

ROOT = Path(__file__).parents[3]
HEAD = "<!-- written by `python -m emblema.report.docs`; change the card instead -->"
COMMANDS = {  # small, so that each ends in minutes
    "pretrain": "emblema pretrain {name} --data emblems --arch tiny --steps 200 --out runs/{name}",
    "transfer": "emblema transfer {name} --data emblem-silhouettes --classes 10 --shots 4 --seeds 1",
    "distill": "emblema distill {name} --data emblem-scenes --images 200 --steps 100 --out runs/{name}",
}


def command(family: str, card: dict[str, Any]) -> str:
    """What to type to run a system on bundled data: scenes for one that learns from boxes or masks."""
    said = COMMANDS[family].format(name=card["name"])
    if "protocol" in card:  # one that is not measured by classes of pictures
        said = f"emblema transfer {card['name']} --data emblem-scenes --seeds 1"
    needs = set(card.get("needs") or ())
    boxed = {"boxes", "masks"} & needs
    if family == "distill" and "texts" in needs:  # captions speak of what is not annotated
        said += " --novel-in-train 0.5"
    return said.replace("--data emblems ", "--data emblem-scenes ") if boxed else said


def fields_of(path: Path) -> list[dict[str, str]]:
    """Name, type, default and comment of each field of the class with the card, and of its bases in `base.py`."""
    own = _class_fields(path)
    base = path.parent / "base.py"
    inherited = _class_fields(base) if base.exists() else []
    named = {f["name"] for f in own}
    return own + [f for f in inherited if f["name"] not in named]


def _class_fields(path: Path) -> list[dict[str, str]]:
    text = path.read_text(encoding="utf-8")
    lines, tree, found = text.splitlines(), ast.parse(text), []
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef)]
    with_card = [c for c in classes if any(_is_card(n) for n in c.body)]
    bases = [c for c in classes if path.stem == "base" and c.name in ("Task", path.parent.name.title())]
    for node in (n for c in with_card or bases for n in c.body):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and "ClassVar" not in ast.unparse(node)
        ):
            last = lines[(node.end_lineno or node.lineno) - 1]
            comment = last.split("  # ", 1)[1].strip() if "  # " in last else ""
            default = _default(node.value) if node.value else "required"
            found.append(
                {"name": node.target.id, "type": ast.unparse(node.annotation), "default": default, "help": comment}
            )
    return found


def _is_card(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "card" for t in node.targets)


def _default(value: ast.expr) -> str:
    if isinstance(value, ast.Call) and getattr(value.func, "id", "") == "field":
        for keyword in value.keywords:
            if keyword.arg == "default_factory":
                body = keyword.value.body if isinstance(keyword.value, ast.Lambda) else keyword.value
                return ast.unparse(body) + ("" if isinstance(keyword.value, ast.Lambda) else "()")
            if keyword.arg == "default":
                return ast.unparse(keyword.value)
    return ast.unparse(value)


def method_page(card: dict[str, Any]) -> str:
    """The page of a system."""
    name, family = card["name"], card["family"]
    path = ROOT / "src" / "emblema" / family / f"{name}.py"
    intro = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    parts = [HEAD, f"# {name}", intro, f"*{card['title']}* ({card['year']}), {tables.paper(card['paper'])}."]
    facts = [
        ("survey", card["section"]),
        ("framework", card.get("framework", "two-tower")),
        ("reads", card.get("reads", "PIXELS")),
        ("needs", ", ".join(card.get("needs", ())) or "-"),
        ("objectives", ", ".join(card.get("objectives", ())) or "-"),
        ("claim", card.get("claim") or "-"),
        ("parity oracle", card.get("oracle") or "-"),
    ]
    parts += [f"```\n{card['equation']}\n```", tables.markdown(["", ""], facts)]
    parts += [f"## Run\n\n```\n{command(family, card)}\n```"]
    rows = [[f"`{f['name']}`", f"`{f['type']}`", f"`{f['default']}`", f["help"]] for f in fields_of(path)]
    parts += ["## Fields\n\n" + tables.markdown(["field", "type", "default", ""], rows)]
    if card.get("deviations"):
        parts += ["## Deviations\n\n" + "\n".join(f"- {d}" for d in card["deviations"])]
    return "\n\n".join(parts) + "\n"


def generated(root: Path = ROOT) -> dict[Path, str]:
    """Path -> content of everything that is generated, README.md included when it has the markers."""
    pages: dict[Path, str] = {}
    for family in find.FAMILIES:
        for card in find.cards(family):
            if (root / "src" / "emblema" / family / f"{card['name']}.py").exists():
                pages[root / "docs" / "methods" / f"{card['name']}.md"] = method_page(card)
    folder = root / "benchmarks" / "results"
    default, speed = evidence.read(folder, "default"), evidence.read(folder, "speed")
    if default:
        pages[root / "docs" / "results" / "default.md"] = evidence.default_page(
            default, evidence.read(folder, "recipes"), evidence.read(folder, "limits")
        )
    if speed:
        pages[root / "docs" / "results" / "speed.md"] = evidence.speed_page(speed)
    for family in find.FAMILIES:
        if lines := evidence.read(folder, family):
            pages[root / "docs" / "results" / f"{family}.md"] = claims.page(family, lines)
    if lines := evidence.read(folder, "paradigms"):
        pages |= {root / "docs" / "results" / name: text for name, text in paradigms.pages(lines).items()}
    readme = root / "README.md"
    if readme.exists():
        pages[readme] = with_tables(readme.read_text(encoding="utf-8"), default, speed)
    return pages


def with_tables(text: str, default: Sequence[evidence.Line] = (), speed: Sequence[evidence.Line] = ()) -> str:
    """The text with the table of each family, and of the results, between its markers."""
    blocks = {f"systems:{f}": tables.systems(find.cards(f), link="docs/methods/") for f in find.FAMILIES}
    blocks |= {"results:default": evidence.headlines(default), "results:speed": evidence.comparisons(speed, short=True)}
    for name, table in blocks.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        block = f"{start}\n{table}\n{end}"
        text = re.sub(re.escape(start) + ".*?" + re.escape(end), lambda _, b=block: b, text, flags=re.DOTALL)
    return text


def stale(root: Path = ROOT) -> list[Path]:
    """Generated files that differ from what would be written, and pages of systems that are gone."""
    pages = generated(root)
    differ = [p for p, text in pages.items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    gone = [p for p in (root / "docs" / "methods").glob("*.md") if p not in pages and _is_generated(p)]
    return sorted(differ + gone)


def write(root: Path = ROOT) -> list[Path]:
    """Bring all of it up to date; returns what was changed."""
    changed, pages = stale(root), generated(root)
    for path in changed:
        if path in pages:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pages[path], encoding="utf-8")
        else:
            path.unlink()
    return changed


def _is_generated(path: Path) -> bool:
    return path.read_text(encoding="utf-8").startswith(HEAD)


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    places = [a for a in arguments if not a.startswith("-")]
    root = Path(places[0]) if places else ROOT
    if "--check" in arguments:
        old = stale(root)
        for path in old:
            print(f"out of date: {path.relative_to(root)}; run python -m emblema.report.docs", file=sys.stderr)
        return 1 if old else 0
    for path in write(root):
        print(path.relative_to(root))
    return 0


if __name__ == "__main__":
    sys.exit(main())
