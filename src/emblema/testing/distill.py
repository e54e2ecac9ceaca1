"""The contract of a distillation: fit, segment or detect, save and load, on a tiny teacher and a few squares."""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from emblema.core.boxes import Boxes, Masks
from emblema.core.card import DatasetCard
from emblema.core.errors import BadCheckpoint, BadData, NotFitted
from emblema.data.datasets import Records
from emblema.engine.features import fingerprint
from emblema.testing.squares import COLOURS, NAMES


class Placed(Records):
    """Grey pictures with two coloured squares each; the last class is novel."""

    def novel_classes(self) -> list[str]:
        return [NAMES[3]]


def placed_squares(count: int = 12, size: int = 64) -> Placed:
    random = np.random.default_rng(0)
    columns: dict[str, list[Any]] = {"key": [], "image": [], "boxes": [], "mask": [], "labels": [], "text": []}
    for i in range(count):
        pixels = random.integers(100, 140, (size, size, 3))
        xyxy, labels, instances = [], [], []
        for half in (0, 1):
            label = int(random.integers(4))
            side = int(random.integers(size // 4, size // 2 - 2))
            x = half * size // 2 + int(random.integers(0, size // 2 - side))
            y = int(random.integers(0, size - side))
            pixels[y : y + side, x : x + side] = COLOURS[label]
            instance = torch.zeros(size, size, dtype=torch.bool)
            instance[y : y + side, x : x + side] = True
            xyxy.append([x, y, x + side, y + side])
            labels.append(label)
            instances.append(instance)
        map_ = torch.full((size, size), 255)
        for label, instance in zip(labels, instances):
            map_[instance] = label
        columns["key"].append(f"placed-{i}")
        columns["image"].append(Image.fromarray(pixels.astype(np.uint8)))
        columns["boxes"].append(Boxes(torch.tensor(xyxy).float(), labels=torch.tensor(labels)))
        columns["mask"].append(Masks(map_, torch.stack(instances)))
        columns["labels"].append(tuple(sorted(set(labels))))
        columns["text"].append(f"{NAMES[labels[0]]} left of {NAMES[labels[1]]}")
    return Placed(DatasetCard(name="placed", title="Placed squares", task="segmentation", classes=4), columns, NAMES)


def hard_squares() -> Placed:
    """Four pictures: one shows nothing, one has a box that leaves it, boxes beside it and without area and of NaN, and
    two are sound."""
    data = placed_squares(4)
    columns = {name: list(values) for name, values in data.columns.items()}
    nothing = Boxes(torch.empty(0, 4), labels=torch.empty(0, dtype=torch.long))
    columns["boxes"][0], columns["labels"][0] = nothing, ()
    columns["mask"][0] = Masks(torch.full((64, 64), 255), torch.empty(0, 64, 64, dtype=torch.bool))
    boxes, mask = columns["boxes"][1], columns["mask"][1]
    more = torch.tensor([[-20.0, 30, 20, 90], [70, 0, 90, 20], [8, 8, 8, 20], [float("nan"), 0, 9, 9]])
    empty = torch.zeros(4, 64, 64, dtype=torch.bool)
    columns["boxes"][1] = Boxes(torch.cat([boxes.xyxy, more]), labels=torch.tensor([*boxes.labels, 0, 1, 0, 1]))
    columns["mask"][1] = Masks(mask.labels, torch.cat([mask.instances, empty]))
    return Placed(data.card, columns, NAMES)


def check_distill(cls: type) -> None:
    """Raises AssertionError with what is wrong."""
    from emblema.testing import tiny_model

    name, data, teacher = cls.card.name, placed_squares(), tiny_model(cache=False)  # type: ignore[attr-defined]
    test = data.subset(range(4))
    system = short_distill(cls)
    for action in (lambda: system.predict(test), lambda: system.save("nowhere")):
        try:
            action()
        except NotFitted:
            continue
        raise AssertionError(f"{name}: before fit(), predict() and save() must raise NotFitted")
    before, terms = fingerprint(teacher.vlm), []
    assert system.fit(teacher, data, on_step=lambda step: terms.append(step.losses)) is system, "fit() must return self"
    assert fingerprint(teacher.vlm) == before, f"{name} changed its teacher"
    assert all(p.grad is None and not p.requires_grad for p in teacher.vlm.parameters()), f"{name} marked its teacher"
    assert all(v == v for step in terms for v in step.values()), f"{name}: a term is NaN"
    trains = "no pictures" not in cls.card.needs  # type: ignore[attr-defined]
    assert not trains or len(terms) == 3, f"{name}: {len(terms)} steps instead of 3"
    found = values(system.predict(test))
    assert all(f.isfinite().all() and not f.requires_grad for f in found), f"{name}.predict() is not finite"
    again = values(short_distill(cls).fit(teacher, data).predict(test))
    assert same(again, found), f"{name}: the same seed gave another student"
    words = [NAMES[2], NAMES[0] if cls.card.closed else "house"]  # type: ignore[attr-defined]
    picture = data[0].image
    if hasattr(system, "segment"):
        (map_,) = system.segment([picture], words)
        assert map_.dim() == 2 or len(map_) in (2, 3), f"{name}.segment() gave {tuple(map_.shape)} for 2 words"
    if hasattr(system, "detect"):
        (boxes,) = system.detect([picture], words)
        assert boxes.labels is not None and boxes.scores is not None, f"{name}.detect() gave no labels or scores"
        assert not len(boxes) or int(boxes.labels.max()) < 2, f"{name}.detect() named a class that was not asked for"
    check_saved(system, teacher, test, found, name)
    terms.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        system = short_distill(cls)
        if hasattr(system, "proposals"):
            system.proposals = lambda batch, most: [torch.empty(0, 4) for _ in batch.keys]
        system.fit(teacher, hard_squares(), on_step=lambda step: terms.append(step.losses))
    assert all(v == v for step in terms for v in step.values()), (
        f"{name}: NaN where pictures show nothing and nothing is proposed"
    )
    if trains:
        try:
            short_distill(cls).fit(teacher, data.subset([]))
        except BadData:
            return
        raise AssertionError(f"{name}.fit() on no pictures must raise BadData")


def short_distill(cls: type) -> Any:
    """The system with its defaults, trained for three steps on small pictures."""
    system = cls()
    system.optim, system.image_size = replace(system.optim, steps=3, batch_size=4), 64
    for name in vars(system):
        if name.endswith("_steps"):  # of what is learnt before the student
            setattr(system, name, 3)
    return system


def check_saved(system: Any, teacher: Any, test: Records, found: Sequence[Tensor], name: str) -> None:
    from emblema.core import find
    from emblema.testing import tiny_model

    if not type(system).__module__.startswith("emblema_user_") and name not in find.names("distill"):
        return  # a class of a running program has no file to be loaded from
    assert sys.modules[type(system).__module__]
    with tempfile.TemporaryDirectory() as folder:
        system.save(folder)
        loaded = type(system).load(folder, teacher)
        assert same(values(loaded.predict(test)), found), f"{name}: saved and loaded, it says something else"
        try:
            type(system).load(folder, tiny_model(seed=1, cache=False))
        except BadCheckpoint:
            return
        raise AssertionError(f"{name}.load() took another teacher")


def values(said: Sequence[Any]) -> list[Tensor]:
    """Maps as they are, boxes as rows of corners, score and label."""
    rows = lambda s: torch.cat([s.xyxy, s.scores[:, None], s.labels[:, None].float()], 1)
    return [rows(s) if isinstance(s, Boxes) else s.float() for s in said]


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(x.shape == y.shape and torch.allclose(x, y, atol=1e-4) for x, y in zip(a, b))
