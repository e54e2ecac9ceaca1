"""Verbs for pictures of one's own: classify, search."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emblema.cli.common import parser_of, table, words
from emblema.core.errors import BadData


def with_model(verb: str, about: str) -> argparse.ArgumentParser:
    parser = parser_of(verb, about)
    parser.add_argument("--model", default="default", help="a name from `emblema list models`, or a checkpoint folder")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--batch-size", type=int, default=64)
    return parser


def _load(options: Any) -> Any:
    from emblema.model import load

    return load(options.model, device=options.device, precision=options.precision, batch_size=options.batch_size)


def classify(arguments: list[str], as_json: bool) -> Any:
    parser = with_model("classify", "Which of the given words fits each picture.")
    parser.add_argument("pictures", nargs="+", help="folders (searched with their subfolders) or files")
    parser.add_argument(
        "--labels", help='"cat,dog,red car", or a text file with a label a line; not for a fitted system'
    )
    parser.add_argument("--templates", help='"a drawing of a {}.", or a text file with a template a line')
    parser.add_argument("--top", type=int, default=5, help="labels shown a picture")
    parser.add_argument("--page", help="write an HTML page with pictures and predictions here")
    options = parser.parse_args(arguments)
    from emblema.model import checked_labels

    paths = pictures_in(options.pictures)
    if _is_fitted(options.model):
        from emblema.transfer.base import load

        system = load(options.model)
        labels, (logits, errors) = system.class_names_, system.try_pictures(paths)
        said = logits.softmax(-1)
    elif options.labels is None:
        raise BadData('say which words: --labels "cat,dog,red car"')
    else:
        labels, templates = checked_labels(words(options.labels)), templates_of(options.templates)
        model = _load(options)
        z_text = model.class_vectors(labels, templates)
        z, errors = model.try_images(paths)
        said = model.probabilities(z, z_text)
    broken = dict(errors)
    probability, order = said.sort(dim=-1, descending=True, stable=True)
    found = [
        {
            "path": str(path),
            "labels": []
            if i in broken
            else [
                {"label": labels[j], "probability": q}
                for j, q in zip(order[i, : options.top].tolist(), probability[i, : options.top].tolist())
            ],
            "error": broken.get(i),
        }
        for i, path in enumerate(paths)
    ]
    if not as_json:
        rows = [
            (
                f["path"],
                *_best(f["labels"]),
                "; ".join(f"{g['label']} {g['probability']:.0%}" for g in f["labels"][1:3]),
            )
            if not f["error"]
            else (f["path"], "", "", f"cannot be read: {f['error']}")
            for f in found
        ]
        table(("picture", "label", "", "then"), rows)
    if options.page:
        from emblema.report import page

        shown = [{"image": f["path"], "name": Path(f["path"]).name, "labels": f["labels"][:3]} for f in found[:500]]
        print(f"page: {page.write(options.page, title='Classified', pictures=shown)}", file=sys.stderr)
    all_broken(paths, errors)
    return found


def _is_fitted(model: str) -> bool:
    """Is this the folder of a fitted transfer system?"""
    about = Path(model) / "config.json"
    return about.is_file() and json.loads(about.read_text(encoding="utf-8")).get("framework") == "transfer"


def _best(labels: list[dict]) -> tuple[str, str]:
    return labels[0]["label"], f"{labels[0]['probability']:.0%}"


def search(arguments: list[str], as_json: bool) -> Any:
    parser = with_model("search", "Pictures that fit the words, best first.")
    parser.add_argument("pictures", nargs="+", help="folders (searched with their subfolders) or files, then the words")
    parser.add_argument("--top", type=int, default=10, help="pictures shown")
    parser.add_argument("--page", help="write an HTML page with the pictures here")
    options = parser.parse_args(arguments)
    if len(options.pictures) < 2 or not options.pictures[-1].strip():
        raise BadData('say what to search for: emblema search FOLDER "a red fish"')
    paths, words = pictures_in(options.pictures[:-1]), options.pictures[-1]
    from emblema.encoders.tokenizers import checked_words

    model = _load(options)
    checked_words(model.vlm.text, [words])
    z, errors = model.file_features(paths)
    for i, reason in errors:
        print(f"emblema: {paths[i]} left out: {reason}", file=sys.stderr)
    score = (z @ model.embed_texts([words])[0]).nan_to_num(nan=-2)
    order = score.argsort(descending=True, stable=True)[: min(options.top, len(paths) - len(errors))].tolist()
    found = [{"path": str(paths[i]), "score": float(score[i])} for i in order]
    if not as_json:
        table(("picture", "score"), [(f["path"], f"{f['score']:.3f}") for f in found], words)
    if options.page:
        from emblema.report import page

        shown = [{"image": f["path"], "name": Path(f["path"]).name, "score": f["score"]} for f in found]
        print(f"page: {page.write(options.page, title=words, pictures=shown)}", file=sys.stderr)
    all_broken(paths, errors)
    return found


def pictures_in(places: Sequence[str]) -> list[Path]:
    from emblema.data.catalog import PICTURES

    found: list[Path] = []
    for place in map(Path, places):
        if place.is_dir():
            files = sorted(p for p in place.rglob("*") if p.suffix.lower() in PICTURES and p.is_file())
            if not files:
                raise BadData(f"no pictures in {place} (looked for {', '.join(PICTURES)})")
            found += files
        elif place.exists():
            found.append(place)
        else:
            raise BadData(f"no file or folder {place}")
    return found


def all_broken(paths: Sequence[Any], errors: Sequence[tuple[int, str]]) -> None:
    if len(errors) == len(paths):
        raise BadData(f"none of the {len(paths)} pictures can be read; the first: {errors[0][1]}")


def templates_of(text: str | None) -> list[str] | None:
    if text is None:
        return None
    from emblema.tasks.wording import read_templates

    return read_templates(text) if text.endswith(".txt") else [text]
