"""docs/results/paradigms.md and its figure, from the lines of `emblema bench paradigms`. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from emblema.report import tables
from emblema.report.figures import Point, curves

Line = Mapping[str, Any]
ABOUT = (
    "The survey tells the history of visual recognition as five paradigms. Here each of them learns the same classes "
    "from the same labelled pictures, and is tested on the same test split. Rows of trained paradigms are means over "
    "seeds (draw of pictures, initial weights, pre-training) with their 95 % t interval. Where a seed changes nothing "
    "(the vision-language model; hand-crafted features of all pictures) the interval is a bootstrap over test pictures."
)
NOTES = (
    "Networks are one small CNN at 32 pixels with one budget; the vision-language model is larger, has seen more, and "
    "its image tower begins with convolutions that were trained on ImageNet. Ways of working are compared, not sizes.",
    "Pre-training pictures are training pictures of `emblems` without any picture of the tested sets and without every "
    "other picture of their concepts. The vision-language model was trained on captions of such concepts, as models of "
    "the web are; no test picture and no art family of a test split was in its training.",
    "A class that has fewer pictures than asked gives all it has.",
)


def pages(lines: Iterable[Line]) -> dict[str, str]:
    """{file name: text} of the page and of its figure."""
    lines = list(lines)
    title = "The survey's five paradigms"
    parts = [f"# {title}", ABOUT, f"![accuracy against labels a class]({FIGURE})"]
    for name, header, rows in as_tables(lines):
        hashes = dict.fromkeys(f"{one['protocol']['name']} `{one['protocol']['hash']}`" for one in _of(lines, name))
        sizes = _of(lines, name)[0]["sizes"]
        about = (
            f"{sizes['classes']} classes, {sizes['images']} test pictures; top-1 in %, by labelled pictures a class."
        )
        parts += [f"## {name}", about, tables.markdown(header, rows, "l" + "r" * (len(header) - 1))]
        parts += [f"Protocols: {', '.join(hashes)}."]
    parts += ["\n".join(f"- {note}" for note in NOTES)]
    parts += ["```\n" + "\n".join(dict.fromkeys(one["command"] for one in lines)) + "\n```"]
    return {"paradigms.md": "\n\n".join(parts) + "\n", FIGURE: figure(lines)}


FIGURE = "paradigms.svg"


def as_tables(lines: Iterable[Line]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """(data set, header, rows): a row a paradigm, a column a number of labels."""
    lines = list(lines)
    ticks = _ticks(lines)
    for name in dict.fromkeys(one["data"] for one in lines):
        rows: dict[str, dict[str, str]] = {}
        for one in _of(lines, name):
            row = rows.setdefault(one["fields"]["title"], {})
            row[_tick(one)] = tables.formatted("top1", one["metrics"]["top1"])
        yield name, ["paradigm", *ticks], [[title, *(row.get(t, "-") for t in ticks)] for title, row in rows.items()]


def figure(lines: Iterable[Line]) -> str:
    """A panel a data set. The vision-language model sees no label, so its accuracy is a level line."""
    lines = list(lines)
    ticks, panels = _ticks(lines), {}
    for name in dict.fromkeys(one["data"] for one in lines):
        panel = panels.setdefault(name, {})
        for one in _of(lines, name):
            m, curve = one["metrics"]["top1"], panel.setdefault(one["fields"]["title"], [])
            curve.append(Point(ticks.index(_tick(one)), m["value"], m["low"], m["high"]))
            if one["labels"] == 0:
                curve += [Point(x, m["value"]) for x in range(1, len(ticks))]
    return curves(panels, ticks, "labelled pictures a class", "top-1, %", "Five paradigms: accuracy against labels")


def _of(lines: Iterable[Line], data: str) -> list[Line]:
    return [one for one in lines if one["data"] == data]


def _tick(line: Line) -> str:
    return "all" if line["labels"] is None else str(line["labels"])


def _ticks(lines: Iterable[Line]) -> list[str]:
    return sorted({_tick(one) for one in lines}, key=lambda t: float("inf") if t == "all" else int(t))
