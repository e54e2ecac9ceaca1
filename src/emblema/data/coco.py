"""COCO's JSON: instances (boxes, masks), captions, or both in one file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from emblema.core.boxes import Boxes, Masks
from emblema.core.errors import BadData
from emblema.data.datasets import OnBroken, Records, Skip, collect
from emblema.data.image_folder import empty_file


def read_coco(path: Path | str, images: Path | str | None = None, on_broken: OnBroken = "skip") -> Records:
    """Records of a COCO file. Pictures lie in `images`, else beside the file, or in folders where COCO puts them.

    `boxes.labels` index `class_names`, which follow the order of the category ids. Masks are drawn when a record is
    asked for. Boxes without area are left out and counted in the report's notes.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise BadData(f"{path} is no JSON: {error}") from None
    if missing := [k for k in ("images", "annotations") if k not in data]:
        raise BadData(f"{path} is not COCO: it has no {' and no '.join(missing)}")
    categories = sorted(data.get("categories", ()), key=lambda c: c["id"])
    number = {c["id"]: i for i, c in enumerate(categories)}
    named = [i.get("file_name") or "/".join(i["coco_url"].split("/")[-2:]) for i in data["images"]]  # LVIS: address
    folders = [Path(images)] if images is not None else _folders(path)
    home = next((f for f in folders if any((f / name).exists() for name in named[:100])), folders[0])
    objects: dict[Any, list[dict]] = {}
    captions: dict[Any, list[str]] = {}
    flat = 0
    for note in data["annotations"]:
        if "caption" in note:
            captions.setdefault(note["image_id"], []).append(note["caption"].strip())
        elif "bbox" in note:
            if note["bbox"][2] <= 0 or note["bbox"][3] <= 0:
                flat += 1
            else:
                objects.setdefault(note["image_id"], []).append(note)

    def items() -> Iterator[dict[str, Any] | Skip]:
        for image, name in zip(data["images"], named):
            file = next((f / name for f in (home, *folders) if (f / name).exists()), home / name)
            if problem := empty_file(file, name):
                yield problem
                continue
            words = captions.get(image["id"], [])
            if captions and not words and not objects:
                yield Skip(name, "missing caption", f"no caption for image {image['id']}")
                continue
            found = objects.get(image["id"], [])
            boxes = _boxes(found, number) if objects else None
            outlines = [n.get("segmentation") for n in found]
            mask = (image["height"], image["width"], outlines, boxes) if any(outlines) else None
            marks = _federated(image, number)
            words_ = {"text": words[0], "texts": tuple(words[1:]) or None} if words else {}
            labels = tuple(sorted({number[n["category_id"]] for n in found})) or None
            yield {"key": name, "image": file, "boxes": boxes, "labels": labels, "outlines": mask, **words_, **marks}

    records = collect(path.stem, items(), on_broken)
    if flat:
        records.report.notes.append(f"{flat} boxes without area were left out")
    if "outlines" in records.columns:
        records.columns["mask"] = Drawn(records.columns.pop("outlines"))
    records.class_names = [c["name"] for c in categories]
    return records


class Drawn(Sequence):
    """Masks drawn from outlines when they are asked for."""

    def __init__(self, outlines: Sequence):
        self.outlines = outlines

    def __len__(self) -> int:
        return len(self.outlines)

    def only(self, rows) -> Drawn:
        return Drawn([self.outlines[int(i)] for i in rows])

    def __getitem__(self, row):
        if self.outlines[row] is None:
            return None
        height, width, segments, boxes = self.outlines[row]
        return draw_masks(height, width, segments, boxes)


def draw_masks(height: int, width: int, segments: Sequence[Any], boxes: Boxes) -> Masks:
    """An instance mask a box, and their label map: 255 where nothing is or where a crowd is; small things on top."""
    instances = np.stack([decode_segment(s, height, width) for s in segments])  # [N, H, W]
    labels = np.full((height, width), 255, dtype=np.int64)
    crowd = boxes.crowd.tolist() if boxes.crowd is not None else [False] * len(boxes)
    for i in np.argsort(-instances.sum((1, 2)), kind="stable"):
        labels[instances[i]] = 255 if crowd[i] else int(boxes.labels[i])  # type: ignore[index]
    return Masks(torch.from_numpy(labels), torch.from_numpy(instances))


def decode_segment(segment: Any, height: int, width: int) -> np.ndarray:
    """bool [H, W] from COCO's polygons, run lengths, compressed run lengths, or None (nothing)."""
    if not segment:
        return np.zeros((height, width), dtype=bool)
    if isinstance(segment, list):
        drawn = Image.new("1", (width, height))
        for polygon in segment:
            if len(polygon) >= 6:
                ImageDraw.Draw(drawn).polygon([(x - 0.5, y - 0.5) for x, y in zip(polygon[::2], polygon[1::2])], fill=1)
        return np.asarray(drawn)
    counts = segment["counts"]
    counts = decode_counts(counts) if isinstance(counts, str | bytes) else counts
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def decode_counts(text: str | bytes) -> list[int]:
    """COCO's compressed run lengths: five bits a letter from "0" on; from the third on, the change from two before."""
    counts: list[int] = []
    value = shift = 0
    for letter in text.encode() if isinstance(text, str) else text:
        bits = letter - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:  # negative
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """COCO's plain run lengths of a bool [H, W]: column by column, the first run counts zeros."""
    flat = np.asarray(mask, dtype=bool).T.reshape(-1)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [False]])))  # where runs of ones begin and end
    counts = np.diff(np.concatenate([[0], edges, [len(flat)]])).tolist()
    return {"size": list(mask.shape), "counts": counts if counts[-1] or len(counts) == 1 else counts[:-1]}


def _federated(image: Mapping[str, Any], number: Mapping[Any, int]) -> dict[str, Any]:
    """LVIS's marks of a picture: classes that are surely not in it, and those of which not all instances are marked."""
    keys = {"negative": "neg_category_ids", "not_exhaustive": "not_exhaustive_category_ids"}
    return {name: tuple(sorted(number[c] for c in image[key])) for name, key in keys.items() if key in image}


def _boxes(notes: Sequence[Mapping[str, Any]], number: Mapping[Any, int]) -> Boxes:
    xywh = torch.tensor([n["bbox"] for n in notes], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([number[n["category_id"]] for n in notes], dtype=torch.long)
    crowd = torch.tensor([bool(n.get("iscrowd", 0)) for n in notes], dtype=torch.bool)
    return Boxes.from_xywh(xywh, labels=labels, crowd=crowd)


def _folders(path: Path) -> list[Path]:
    """Where the pictures of a COCO file may lie: `annotations/instances_val2017.json` has them in `val2017`."""
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    part = path.stem.rsplit("_", 1)[-1]
    return [root / part, root / "images" / part, root / "images", root, path.parent]
