"""Verbs that look into pictures of one's own: segment, detect."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from emblema.cli.common import table, words
from emblema.cli.pictures import all_broken, pictures_in, templates_of, with_model
from emblema.core.errors import BadData

AT_ONCE = 8
BACKGROUNDS = ("prompts", "none", "threshold", "cam")  # as in engine/dense.py, which imports torch


def segment(arguments: list[str], as_json: bool) -> Any:
    parser = _parser("segment", "Paint over each picture which of the given words its places show.")
    parser.add_argument("--background", default="prompts", choices=BACKGROUNDS, help="how a place becomes none of them")
    parser.add_argument("--features", default="local", choices=("local", "values", "plain"), help="values is MaskCLIP")
    parser.add_argument("--enlarge", type=float, default=2.0, help="size of the picture, in the size of training")
    parser.add_argument("--window", type=float, default=0.0, help="read in windows of this size, in the same unit")
    options = parser.parse_args(arguments)

    def run(model: Any, images: list, labels: list[str]) -> list:
        if not hasattr(model, "vlm"):
            return list(_said(model, "segment", images, labels))
        settings = {"features": options.features, "enlarge": options.enlarge, "window": options.window}
        return model.segment(images, labels, templates_of(options.templates), options.background, **settings)

    def tell(image: Any, said: Any, labels: list[str]) -> tuple[Any, dict[str, Any]]:
        from emblema.report.draw import draw_map

        map_ = _map(said, image, len(labels))
        share = {label: float((map_ == c).double().mean()) for c, label in enumerate(labels)}
        found = sorted(((label, s) for label, s in share.items() if s), key=lambda pair: -pair[1])
        return draw_map(image, map_, labels), {"shares": [{"label": label, "share": s} for label, s in found]}

    return _run(options, as_json, run, tell, lambda f: "; ".join(f"{s['label']} {s['share']:.0%}" for s in f["shares"]))


def detect(arguments: list[str], as_json: bool) -> Any:
    parser = _parser("detect", "Draw boxes around what the given words name.")
    parser.add_argument(
        "--score", type=float, help="boxes with lower scores are not shown (0.3 of a detector, 0.7 of named proposals)"
    )
    parser.add_argument("--regions", default="crops", choices=("crops", "pooled"), help="how a box is read")
    parser.add_argument("--proposals", type=int, default=50, help="boxes looked at a picture")
    options = parser.parse_args(arguments)

    def run(model: Any, images: list, labels: list[str]) -> list:
        if options.score is None:
            options.score = 0.3 if not hasattr(model, "vlm") or model.finds else 0.7
        if not hasattr(model, "vlm"):
            return list(_said(model, "detect", images, labels))
        if model.finds:
            return model.detect(images, labels)
        settings = {"regions": options.regions, "most_proposals": options.proposals}
        return model.detect(images, labels, templates_of(options.templates), **settings)

    def tell(image: Any, said: Any, labels: list[str]) -> tuple[Any, dict[str, Any]]:
        from emblema.report.draw import draw_boxes

        likely = said.at(said.scores >= options.score)
        rows = zip(likely.labels.tolist(), likely.scores.tolist(), likely.xyxy.tolist())
        found = [{"label": labels[c], "score": s, "box": [round(v, 1) for v in box]} for c, s, box in rows]
        return draw_boxes(image, likely, labels), {"boxes": found}

    return _run(options, as_json, run, tell, lambda f: "; ".join(f"{b['label']} {b['score']:.2f}" for b in f["boxes"]))


def _parser(verb: str, about: str) -> argparse.ArgumentParser:
    parser = with_model(verb, about)
    parser.add_argument("pictures", nargs="+", help="folders (searched with their subfolders) or files")
    parser.add_argument("--labels", required=True, help='"cat,dog,red car", or a text file with a label a line')
    parser.add_argument("--out", help="folder for the drawn pictures")
    parser.add_argument("--templates", help='"a drawing of a {}.", or a text file with a template a line')
    parser.add_argument("--system", default="", help="your own .py file with the system of the student in --model")
    return parser


def _run(
    options: Any, as_json: bool, run: Callable, tell: Callable, summary: Callable[[dict[str, Any]], str]
) -> list[dict[str, Any]]:
    """Read, ask, draw and write, a few pictures at a time; what is broken is named and left out."""
    from emblema.model import checked_labels, load_any

    labels, paths = checked_labels(words(options.labels)), pictures_in(options.pictures)
    model = load_any(
        options.model,
        system=options.system,
        device=options.device,
        precision=options.precision,
        batch_size=options.batch_size,
    )
    targets = _targets(options.out, paths)
    found: list[dict[str, Any]] = [{"path": str(path), "out": None, "error": None} for path in paths]
    for start in range(0, len(paths), AT_ONCE):
        sound = list(_opened(found, paths, start))
        for (i, image), said in zip(sound, run(model, [image for _, image in sound], labels) if sound else []):
            drawn, told = tell(image, said, labels)
            found[i] |= told
            if targets:
                targets[i].parent.mkdir(parents=True, exist_ok=True)
                drawn.save(targets[i])
                found[i]["out"] = str(targets[i])
    if not as_json:
        rows = [(f["path"], f"cannot be read: {f['error']}" if f["error"] else summary(f) or "nothing") for f in found]
        table(("picture", "found"), rows)
        if targets:
            print(f"drawn pictures: {options.out}", file=sys.stderr)
    all_broken(paths, [(i, f["error"]) for i, f in enumerate(found) if f["error"]])
    return found


def _opened(found: list[dict[str, Any]], paths: Sequence[Path], start: int) -> Iterator[tuple[int, Any]]:
    from emblema.data.pictures import BrokenPicture, flatten, open_picture

    for i in range(start, min(start + AT_ONCE, len(paths))):
        try:
            yield i, flatten(open_picture(paths[i]), (255, 255, 255))
        except BrokenPicture as broken:
            found[i]["error"] = broken.reason


def _targets(out: str | None, paths: Sequence[Path]) -> list[Path]:
    """A file in the folder `out` for each picture: its name as PNG, numbered where names repeat."""
    if out is None:
        return []
    if Path(out).is_file():
        raise BadData(f"--out {out} is a file; give a folder")
    taken: dict[str, int] = {}
    targets = []
    for path in paths:
        taken[path.stem] = taken.get(path.stem, 0) + 1
        again = f"-{taken[path.stem]}" if taken[path.stem] > 1 else ""
        targets.append(Path(out) / f"{path.stem}{again}.png")
    if overwritten := {t.resolve() for t in targets} & {p.resolve() for p in paths}:
        raise BadData(f"--out {out} would overwrite {sorted(overwritten)[0].name}: give another folder")
    return targets


def _said(model: Any, verb: str, images: list, labels: list[str]) -> Any:
    """What a student says; one that cannot do what is asked says so."""
    if not hasattr(model, verb):
        other = "detect" if verb == "segment" else "segment"
        raise BadData(f"the student {model.name} does not {verb}; try emblema {other}")
    return getattr(model, verb)(images, labels)


def _map(said: Any, image: Any, classes: int) -> Any:
    """A label map in the size of the picture from what a segmenter says."""
    import torch.nn.functional as F

    from emblema.engine.dense import label_map

    size = image.height, image.width
    if said.dim() == 2:
        return (
            said if said.shape == size else F.interpolate(said[None, None].double(), size, mode="nearest")[0, 0].long()
        )
    return label_map(F.interpolate(said[None].float(), size, mode="bilinear", align_corners=False)[0], classes)
