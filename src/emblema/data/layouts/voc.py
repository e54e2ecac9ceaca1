"""PASCAL VOC: lists in `ImageSets`, pictures in `JPEGImages`, boxes in `Annotations`, maps in `SegmentationClass`.

Boxes are given with corners that count from 1 and belong to the box; difficult objects become `crowd`, which
detection ignores, and give no label. Label maps say 0 for background and 255 for the border of objects; background is
ignored too unless `background` makes it class 0. Source: Everingham et al., 2010; Mottaghi et al., 2014 (Context).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from emblema.core.boxes import Boxes
from emblema.core.errors import BadData
from emblema.data.datasets import Skip
from emblema.data.image_folder import empty_file
from emblema.data.layouts import Found, Needs, Place
from emblema.data.layouts.maps import LabelMaps, classes_by_number
from emblema.data.naming import names_of


def needs(splits: Mapping[str, str], kind: str, masks: str = "SegmentationClass", **_: Any) -> Needs:
    lists = tuple(f"ImageSets/{kind}/{part}.txt" for part in splits.values())
    return {"": (*lists, "JPEGImages", "Annotations" if kind == "Main" else masks)}


def read(
    place: Place, splits: Mapping[str, str], kind: str, background: bool = False, names: str = "voc-2007",
    masks: str = "SegmentationClass",
) -> Found:  # fmt: skip
    known = names_of(names)
    number = {folder: i for i, folder in enumerate(known.folders)}
    count = len(known.classes)
    numbers = classes_by_number(range(count + 1) if background else range(1, count + 1))

    def items() -> Iterator[dict[str, Any] | Skip]:
        for split in filter(place.wants, splits):
            for line in (place.root / "ImageSets" / kind / f"{splits[split]}.txt").read_text().split("\n"):
                if not line.strip():
                    continue
                key = line.split()[0]
                picture, notes = place.root / "JPEGImages" / f"{key}.jpg", place.root / "Annotations" / f"{key}.xml"
                mask = place.root / masks / f"{key}.png"
                wanted = notes if kind == "Main" else mask
                if problem := empty_file(picture, picture.name) or empty_file(wanted, wanted.name):
                    yield problem
                    continue
                item = {"key": key, "image": picture, "split": split}
                yield item | (_objects(notes, number) if kind == "Main" else {"mask": mask})

    classes = ["background", *known.classes] if background else list(known.classes)
    return Found(items(), classes, {"mask": lambda files: LabelMaps(files, numbers)})


def _objects(path: Path, number: Mapping[str, int]) -> dict[str, Any]:
    """`boxes` and `labels` of one annotation; classes that are only there as difficult objects are no labels."""
    try:
        found = ElementTree.parse(path).getroot().findall("object")
    except ElementTree.ParseError as error:
        raise BadData(f"{path} is no XML: {error}") from None
    corners, labels, crowd = [], [], []
    for thing in found:
        name, box = thing.findtext("name", ""), thing.find("bndbox")
        if name not in number or box is None:
            raise BadData(f"{path}: an object {name!r} without box or class; classes are {', '.join(number)}")
        x1, y1, x2, y2 = (float(box.findtext(k, "nan")) for k in ("xmin", "ymin", "xmax", "ymax"))
        corners.append((x1 - 1, y1 - 1, x2, y2))
        labels.append(number[name])
        crowd.append(thing.findtext("difficult") == "1")
    boxes = Boxes(
        torch.tensor(corners, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.long),
        crowd=torch.tensor(crowd, dtype=torch.bool),
    )
    return {"boxes": boxes, "labels": tuple(sorted({v for v, skip in zip(labels, crowd) if not skip}))}
