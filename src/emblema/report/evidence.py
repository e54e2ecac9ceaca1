"""Pages and README blocks made of the committed result lines in `benchmarks/results/`. No number is typed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from emblema.report import tables

Line = Mapping[str, Any]
HEADLINES = {  # what the README shows of the default model
    ("zero-shot", "emblem-objects"): {
        "top1_heldout_colour": "drawings by colour art families never shown, {classes} classes, top-1",
        "top5": "the same with the monochrome family, top-5",
    },
    ("zero-shot", "emblem-photos"): {
        "top1": "real photographs, {classes} classes, top-1",
        "mean_per_class": "the same, mean over classes",
    },
    ("retrieval", "emblems"): {
        "image_to_text_R@5": "held-out pictures find a caption, R@5",
        "text_to_image_R@5": "captions find a held-out picture, R@5",
    },
}


def read(folder: Path, name: str) -> list[Line]:
    """The lines of `NAME.jsonl`; none when there is no such file."""
    path = folder / f"{name}.jsonl"
    return [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines() if row] if path.exists() else []


def headlines(lines: Iterable[Line], model: str = "default") -> str:
    """The README's table of the default model."""
    rows = []
    for line in (one for one in lines if one["model"] == model):
        for metric, what in HEADLINES.get((line["task"], line["data"]), {}).items():
            if metric in line["metrics"]:
                shown = tables.formatted(metric, line["metrics"][metric])
                rows.append(
                    [what.format(**line["sizes"]), shown, f"{line['protocol']['name']} `{line['protocol']['hash']}`"]
                )
    return tables.markdown(["", "% [95 % interval]", "protocol"], rows, "lr") if rows else ""


def comparisons(lines: Iterable[Line], short: bool = False) -> str:
    """Speed: one row a comparison; each line holds `comparisons` of {what, against, ratio, low, high}.

    `short`: whole runs in bf16, where a benchmark also has their single steps and fp32.
    """
    rows = []
    for line in lines:
        said = [c["what"] for c in line["comparisons"]]
        whole = {what.split(" run of ")[0] for what in said if " run of " in what}
        in_bf16 = any("bf16" in what for what in said)
        for c in line["comparisons"]:
            if short and (c["what"].split(" step, ")[0] in whole or (in_bf16 and "bf16" not in c["what"])):
                continue
            rows.append([c["what"], c["against"], f"{c['ratio']:.2f} [{c['low']:.2f} .. {c['high']:.2f}]"])
    return tables.markdown(["emblema", "against", "times as fast [range of rounds]"], rows, "llr") if rows else ""


LIMITS = (
    "Classifiers share the picture vectors and differ in what stands for a class: its name, the captions that its "
    "training pictures have, or those pictures. `val` shows other pictures of the training families, `test` families "
    "that no training picture is of. Between the first two lies what is a matter of naming; between the second and the "
    "third, what the words cost: the picture tower tells more classes of a new family apart than it puts near their "
    "words. A linear map of the words wins a part of that back for names that it was learnt from, and takes from all "
    "others (*unseen*: each fifth of the classes through a map learnt from the rest), so none is shipped."
)


UNSEEN = (
    "`default-clean` is the same recipe without any picture of a *novel* concept. Its novel names are looked for among "
    "the names of all concepts, most of which it was trained on, and among the novel ones alone. Its pictures of them "
    "are not what fails (below): where the pictures that the default model is trained on stand for a novel class, the "
    "clean tower, which saw none of them, tells most of them apart. It has not learnt where the words are that no "
    "picture had."
)


def default_page(lines: list[Line], recipes: list[Line], limits: list[Line]) -> str:
    """docs/results/default.md"""
    parts = ["# The default model, measured", "One table a protocol; only rows of one table may be compared."]
    parts += [tables.results(lines)]
    if unseen := [one for one in lines if "top1/novel_among_novel" in one["metrics"]]:
        shown = [f"top1/{group}" for group in ("base", "base_among_base", "novel", "novel_among_novel")]
        parts += ["## Concepts that were never pictured", UNSEEN, tables.results(unseen, shown)]
    if limits:
        shown = ("top1", "top5", "top1_heldout_colour", "top1/base", "top1/novel", "top1/novel_among_novel")
        parts += ["## What limits it on families it never saw", LIMITS, tables.results(limits, shown)]
        parts += ["```\n" + "\n".join(dict.fromkeys(one["command"] for one in limits)) + "\n```"]
    if recipes:
        about = "Validation pictures are other pictures of the training families; recipes were chosen on them."
        parts += ["## Recipes tried", about, tables.results(recipes)]
    return "\n\n".join(p for p in parts if p) + "\n"


def _processor(line: Line) -> str:
    """Its name, and how fast it multiplies matrices where the line says so."""
    rates = ", ".join(f"{rate} GFLOP/s in {precision}" for precision, rate in line.get("gflops", {}).items())
    return line["environment"]["cpu"] + (f" ({rates})" if rates else "")


def speed_page(lines: list[Line]) -> str:
    """docs/results/speed.md"""
    about = "Variants take turns in one run on two shared CPU cores; a ratio is the median over rounds, with its range."
    parts = ["# Speed, side by side", about]
    for name in dict.fromkeys(line["benchmark"] for line in lines):
        parts += [f"## {name}", comparisons(one for one in lines if one["benchmark"] == name)]
        notes = dict.fromkeys(n for one in lines if one["benchmark"] == name for n in one.get("notes", ()))
        parts += ["\n".join(f"- {n}" for n in notes)] if notes else []
        where = dict.fromkeys(_processor(one) for one in lines if one["benchmark"] == name)
        parts += [f"Measured on: {', '.join(where)}."]
    return "\n\n".join(parts) + "\n"
