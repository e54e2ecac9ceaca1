"""Figures as SVG text: the same numbers give the same file, and no plotting library is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

COLOURS = ("#6b7280", "#d97706", "#2563eb", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, GAP = 330, 250, 46, 34, 40, 24  # of a panel and its margins, in pixels


class Point(NamedTuple):
    """One measurement: `x` is a place on the axis, counted from 0."""

    x: int
    value: float
    low: float | None = None
    high: float | None = None


Panel = Mapping[str, Sequence[Point]]  # curve -> its points


def curves(panels: Mapping[str, Panel], ticks: Sequence[str], across: str, up: str, title: str = "") -> str:
    """Panels side by side with one legend: a curve a name, a whisker an interval; values are shares (0 to 1).

    `ticks` name the places on the horizontal axis.
    """
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    width = len(panels) * (WIDTH + LEFT) + GAP
    height = TOP + HEIGHT + BOTTOM + 18 * len(names) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#1c2430">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for i, (name, panel) in enumerate(panels.items()):
        parts += _panel(LEFT + i * (WIDTH + LEFT), name, panel, ticks, across, up, colour)
    for i, name in enumerate(names):
        y = TOP + HEIGHT + BOTTOM + 18 * i + 8
        parts.append(
            f'<line x1="{LEFT}" y1="{y}" x2="{LEFT + 22}" y2="{y}" stroke="{colour[name]}" stroke-width="2.5"/>'
        )
        parts.append(f'<text x="{LEFT + 30}" y="{y + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(
    left: int, name: str, panel: Panel, ticks: Sequence[str], across: str, up: str, colour: Mapping[str, str]
) -> list[str]:
    at = lambda x: left + 20 + (WIDTH - 40) * x / max(len(ticks) - 1, 1)
    rise = lambda v: TOP + HEIGHT * (1 - v)
    parts = [f'<text x="{left}" y="{TOP - 14}" font-weight="600">{escape(name)}</text>']
    for per_cent in range(0, 101, 20):
        y = rise(per_cent / 100)
        parts.append(f'<line x1="{left}" y1="{y:g}" x2="{left + WIDTH}" y2="{y:g}" stroke="#dde3ea"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:g}" text-anchor="end" fill="#5d6b7d">{per_cent}</text>')
    for x, tick in enumerate(ticks):
        parts.append(f'<text x="{at(x):g}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{escape(tick)}</text>')
    parts.append(
        f'<text x="{left + WIDTH / 2:g}" y="{TOP + HEIGHT + 32}" text-anchor="middle" fill="#5d6b7d">'
        f"{escape(across)} ({escape(up)} upwards)</text>"
    )
    for shift, (curve, points) in enumerate(panel.items()):
        aside = 3 * (shift - (len(panel) - 1) / 2)  # so that whiskers do not hide one another
        spots = [(at(p.x) + aside, p) for p in sorted(points)]
        stroke = f'stroke="{colour[curve]}" stroke-width="2"'
        path = " ".join(f"{x:.1f},{rise(p.value):.1f}" for x, p in spots)
        parts.append(f'<polyline points="{path}" fill="none" {stroke}/>')
        for x, p in spots:
            if p.low is not None and p.high is not None:
                low, high = max(p.low, 0.0), min(p.high, 1.0)
                parts.append(f'<line x1="{x:.1f}" y1="{rise(low):.1f}" x2="{x:.1f}" y2="{rise(high):.1f}" {stroke}/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{rise(p.value):.1f}" r="3.2" fill="{colour[curve]}"/>')
    return parts
