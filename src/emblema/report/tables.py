"""Tables from result lines and from cards: markdown for files, text for terminals. Numbers are never typed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PER_CENT = (  # parts of the names of shares
    *("top", "mean_per_class", "ece", "R@", "recall", "IoU", "base", "novel", "harmonic", "accuracy", "AP", "AR"),
    *("roc_auc", "hca", "mta", "all_right", "gap", "robustness", "domain"),
)


def formatted(name: str, metric: Mapping[str, float | None], signed: bool = False) -> str:
    """A metric with its interval: shares in per cent, the rest as they are; differences with their signs."""
    value, low, high = (metric.get(k) for k in ("value", "low", "high"))
    if value is None:
        return "-"
    share = any(part in name for part in PER_CENT) and name != "rsum"
    show = lambda x: f"{x * (100 if share else 1):{'+' if signed else ''}.1f}"
    return show(value) if low is None or high is None else f"{show(value)} [{show(low)}, {show(high)}]"


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]], align: str = "") -> str:
    """A markdown table; `align` has a letter a column, l or r."""
    rule = ["---:" if a == "r" else "---" for a in align.ljust(len(header), "l")]
    lines = [header, rule, *([_cell(v) for v in row] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def results(lines: Iterable[Mapping[str, Any]], metrics: Sequence[str] = ()) -> str:
    """A markdown table a protocol; only lines of equal protocol hash stand in one table."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in lines:
        if "metrics" in one:
            groups.setdefault((one["protocol"]["name"], one["protocol"]["hash"]), []).append(one)
    parts = []
    for (name, hash_), group in groups.items():
        shown = metrics or list(dict.fromkeys(m for one in group for m in one["metrics"] if "/" not in m))
        rows = [
            [
                one["system"],
                one["model"],
                *(formatted(m, one["metrics"].get(m, {})) for m in shown),
                f"{one['seconds']:.1f}",
            ]
            for one in group
        ]
        table = markdown(["system", "model", *shown, "seconds"], rows, "ll" + "r" * (len(shown) + 1))
        parts.append(f"**{name}** (protocol `{hash_}`)\n\n{table}\n")
    return "\n".join(parts)


def systems(cards: Iterable[Mapping[str, Any]], link: str = "") -> str:
    """The table of systems; `link` is a folder with a page a system. What they read is said where they differ in it."""
    cards, rows = list(cards), []
    reads = lambda card: card.get("reads", "PIXELS").lower()
    differ = len({reads(card) for card in cards}) > 1
    for card in sorted(cards, key=lambda c: (c["year"], c["name"])):
        name = f"[{card['name']}]({link}{card['name']}.md)" if link else card["name"]
        rows.append([name, card["title"], paper(card["paper"]), card["year"], card["section"]] + [reads(card)] * differ)
    return markdown(["system", "paper", "source", "year", "survey"] + ["reads"] * differ, rows)


def paper(identifier: str) -> str:
    """A link for an arXiv identifier, else the text itself."""
    digits = identifier.removeprefix("arXiv:").strip()
    if digits.replace(".", "").isdigit() and "." in digits:
        return f"[{digits}](https://arxiv.org/abs/{digits})"
    return identifier


def terminal(header: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "", file: Any = None) -> None:
    """Print a table that fits the terminal; plain when the output is no terminal."""
    import sys

    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    file = file or sys.stdout
    console = Console(file=file, highlight=False, width=None if file.isatty() else 160)
    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, no_wrap=i == 0, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(v)) for v in row))
    console.print(table)
