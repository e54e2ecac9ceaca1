"""One HTML file with pictures, predictions and metrics: no other file, no network, readable in ten years."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emblema.report.tables import formatted

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6b7d; --line: #dde3ea; --card: #fff; --back: #f5f7f9;
  --bar: #3f7cac; --good: #2e7d4f; --bad: #b3403a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf1; --soft: #9aa7b6; --line: #2e3947; --card: #1a222c;
  --back: #12181f; --bar: #6ba6d6; --good: #6fce97; --bad: #ef8a82; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
.soft { color: var(--soft); } code { font-size: .9em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; background: var(--card); border: 1px solid var(--line); }
th, td { padding: .4rem .7rem; border-bottom: 1px solid var(--line); text-align: left; }
th { font-weight: 600; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: .8rem; }
figure { margin: 0; padding: .7rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
figure img { display: block; height: 8rem; max-width: 100%; margin: 0 auto .5rem; object-fit: contain; }
figcaption { font-size: .88rem; } .row { display: grid; grid-template-columns: 1fr auto; gap: .1rem .5rem; }
.bar { grid-column: 1 / -1; height: 4px; border-radius: 2px; background: var(--line); }
.bar i { display: block; height: 100%; border-radius: 2px; background: var(--bar); }
.right { color: var(--good); } .wrong { color: var(--bad); } .name { overflow-wrap: anywhere; }
"""


def picture_uri(source: Any, size: int = 160) -> str:
    """A data URI of a small WebP of the picture (a path, bytes, or a PIL image)."""
    from emblema.data.pictures import open_picture

    image = open_picture(source)
    image.thumbnail((size, size))
    file = io.BytesIO()
    image.save(file, "webp", quality=80)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def page(
    title: str,
    *,
    lines: Sequence[Mapping[str, Any]] = (),
    pictures: Sequence[Mapping[str, Any]] = (),
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The page as text.

    `lines` are result lines. Each of `pictures` has `image` (anything that opens), `labels`
    [{label, probability}], and may have `truth`, `name`, `score`. `tables` are shown as they are, under their names.
    """
    text = html.escape
    parts = [f"<h1>{text(title)}</h1>"]
    parts += [f'<p class="soft">{text(note)}</p>' for note in notes]
    for one in lines:
        parts.append(_metrics(one))
    if pictures:
        parts.append(f'<h2>Pictures and predictions</h2><div class="grid">{"".join(map(_figure, pictures))}</div>')
    for name, rows in (tables or {}).items():
        parts.append(f"<h2>{text(name.replace('_', ' '))}</h2>{_table(rows)}")
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body>\n{body}\n</body></html>\n"
    )


def write(path: str | Path, **content: Any) -> Path:
    """Write a page."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(**content), encoding="utf-8")
    return path


def from_evaluation(line: Mapping[str, Any], evaluation: Mapping[str, Any], data: Any) -> dict[str, Any]:
    """The content of the page of one evaluation: its line, some of its pictures, its tables."""
    shown = [
        {"image": p["image"] if "image" in p else data[p["index"]].image, "name": p.get("key", ""), **p}
        for p in evaluation.get("predictions", ())
    ]
    tables = {name: rows[:60] for name, rows in evaluation.get("tables", {}).items()}
    return {"title": line["protocol"]["name"], "lines": [line], "pictures": shown, "tables": tables}


def _metrics(line: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><td>{html.escape(name)}</td><td class="n">{html.escape(formatted(name, metric))}</td></tr>'
        for name, metric in line["metrics"].items()
    )
    protocol = f"protocol {line['protocol']['name']} {line['protocol']['hash']}"
    who = f"{line['system']}, model {line['model']}, {line['data']} ({line['split']})"
    about = f"{who}, {protocol}, {line['seconds']:.1f} s"
    notes = "".join(f'<p class="soft">{html.escape(note)}</p>' for note in line.get("notes", ()))
    head = '<tr><th>metric</th><th class="n">value [95 % interval]</th></tr>'
    title = f'<h2>{html.escape(line["task"])}</h2><p class="soft">{html.escape(about)}</p>'
    return f"{title}{notes}<table>{head}{rows}</table>"


def _figure(item: Mapping[str, Any]) -> str:
    text, truth = html.escape, item.get("truth")
    rows = []
    for i, guess in enumerate(item.get("labels", ())):
        share = min(max(float(guess["probability"]), 0), 1)
        kind = "" if truth is None or i else ("right" if guess["label"] == truth else "wrong")
        rows.append(
            f'<span class="name {kind}">{text(guess["label"])}</span><span>{100 * share:.0f} %</span>'
            f'<span class="bar"><i style="width:{100 * share:.1f}%"></i></span>'
        )
    if "score" in item:
        rows.append(f"<span>score</span><span>{item['score']:.3f}</span>")
    name = f'<div class="soft name">{text(str(item["name"]))}</div>' if item.get("name") else ""
    told = f"<div>is: <b>{text(truth)}</b></div>" if truth is not None else ""
    try:
        image = f'<img alt="{text(truth or str(item.get("name", "")))}" src="{picture_uri(item["image"])}">'
    except Exception as error:  # a page with a gap is better than no page
        image = f'<div class="wrong">{text(str(error))}</div>'
    return f'<figure>{image}<figcaption>{name}{told}<div class="row">{"".join(rows)}</div></figcaption></figure>'


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return '<p class="soft">nothing</p>'
    columns = list(dict.fromkeys(key for row in rows for key in row))
    numeric = {c for c in columns if all(isinstance(r.get(c), int | float | None) for r in rows)}
    head = "".join(f"<th{' class=n' if c in numeric else ''}>{html.escape(c)}</th>" for c in columns)
    body = "".join(
        "<tr>"
        + "".join(f"<td{' class=n' if c in numeric else ''}>{html.escape(_shown(r.get(c)))}</td>" for c in columns)
        + "</tr>"
        for r in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _shown(value: Any) -> str:
    if value is None or value != value:  # NaN
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
