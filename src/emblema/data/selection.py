"""What code that fits or selects may see of a data set. Its test records are not hidden: they are not in there.

A `Selection` copies the few-shot draw and its validation pictures out of the data and keeps no reference to the rest,
so hyper-parameters and epochs cannot be chosen on the test split, not even by mistake.

>>> seen = Selection(catalog.load("emblem-food"), shots=16, seed=1)
>>> system.fit(model, seen.train, seen.val)
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch

from emblema.core.batch import Record
from emblema.core.boxes import Boxes, Masks
from emblema.core.errors import BadData, SealedSplit
from emblema.data import fewshot
from emblema.data.datasets import Records, trainable

IGNORED = 255  # of a label map
TELLING = ("label", "label_name", "labels", "text", "texts", "concept", "group", "action", "novel", "boxes", "mask")


class Selection:
    """The training and validation pictures of one draw. All are `Records` of their own.

    `train`: `shots` pictures a class (None: all, 0: none), drawn by `fewshot.draw` from the training split before
    classes are left out; `val`: up to min(shots, `validation`) a class by the same dice, empty where there is none;
    `unlabelled`: the whole training split without labels, where the protocol allows it; `class_names`: what is learnt;
    `draw`: shots, seed and keys, to be stored with the result (`draw_id` is short for them). Asking for `test` raises
    `SealedSplit`.

    `classes` is "all", "base", or the names to keep; `hides` are fields of a record ("boxes", "mask", "label") that
    training does not get; `held_out` is the split that is tested ("val" where a set has no other).
    """

    def __init__(
        self,
        records: Records,
        shots: int | None = None,
        seed: int = 1,
        classes: str | Sequence[str] = "all",
        *,
        novel: str = "half",
        validation: int | None = 4,
        unlabelled: bool = False,
        hides: Sequence[str] = (),
        held_out: str = "test",
    ):
        learns = shots != 0 or unlabelled
        if learns and not records.splits:
            raise BadData(f"{records.card.name} has no splits: give it some with `fewshot.partition(records)`")
        names = base_and_novel(records, novel)[0] if classes == "base" else records.class_names
        names = list(names if isinstance(classes, str) else classes)
        whole = trainable(records.split("train")) if learns else records.subset(())
        has_val = learns and validation != 0 and "val" in records.splits and held_out != "val"
        val = records.split("val") if has_val else records.subset(())
        dice = random.Random(seed)
        train_keys, val_keys = whole.keys, val.keys
        if shots == 0:
            train_keys = val_keys = []
        elif shots is not None:
            train_keys = fewshot.draw(whole, shots, dice)
            most = min(shots, validation or shots)
            val_keys = fewshot.draw(val, most, dice) if len(val) else []
        few = lambda records, keys: _seen(fewshot.take(records, keys), names, hides).alone()
        self.shots, self.seed, self.data, self.class_names = shots, seed, records.card.name, names
        self.train, self.val = few(whole, train_keys), few(val, val_keys)
        self.draw: dict[str, Any] = {"shots": shots, "seed": seed, "train": self.train.keys, "val": self.val.keys}
        self._unlabelled = _nameless(_seen(whole, names, hides)).alone() if unlabelled else None

    def __repr__(self) -> str:
        count = f"{len(self.train)} training and {len(self.val)} validation records"
        return f"<selection of {self.data}: {count}, {len(self.class_names)} classes, seed {self.seed}>"

    @property
    def draw_id(self) -> str:
        """12 hexadecimal digits that stand for the draw: equal, and the pictures were the same."""
        return hashlib.sha256(json.dumps(self.draw, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def unlabelled(self) -> Records:
        if self._unlabelled is None:
            raise SealedSplit(
                f"this protocol gives no unlabelled pictures of {self.data}: its systems learn from the draw alone. "
                "Use the protocol unsupervised"
            )
        return self._unlabelled

    @property
    def test(self) -> NoReturn:
        raise SealedSplit(
            f"code that fits or selects cannot read the test split of {self.data}: choose settings and epochs on "
            "`.val`. Test sets are in the `Trial`, for the code that measures"
        )


def base_and_novel(records: Records, novel: str = "half") -> tuple[list[str], list[str]]:
    """(base, novel) class names: halves of the labels, or as the data marks them ("marked")."""
    if novel == "half":
        return fewshot.halves(records.class_names)
    base, new = records.base_classes(), records.novel_classes()
    if not base or not new:
        raise BadData(f"{records.card.name} marks no class as novel: use novel: half, or data that marks some")
    return base, new


def _seen(records: Records, names: Sequence[str], hides: Sequence[str]) -> Records:
    """The records of these classes, without what is hidden. Pictures with boxes all stay; their other things go."""
    dense = "label" not in records.columns
    new = {records.class_names.index(n): i for i, n in enumerate(names)}
    narrow = list(names) != list(records.class_names)
    if narrow and not dense:
        records = records.only_classes(names)
    if not hides and not (narrow and dense):
        return records

    def show(record: Record) -> Record:
        if narrow and dense:
            record = _narrowed(record, new)
        gone: dict[str, Any] = {name: () if name in ("labels", "texts") else None for name in hides}
        return replace(record, **gone)

    return records.showing(show, names)


def _narrowed(record: Record, new: dict[int, int]) -> Record:
    """Only the boxes, masks and labels of the classes in `new`, {label: label here}; other pixels are ignored."""
    boxes, mask, instances = record.boxes, record.mask, None
    keep = None
    if boxes is not None and boxes.labels is not None:
        keep = torch.tensor([int(v) in new for v in boxes.labels], dtype=torch.bool)
        labels = torch.tensor([new[int(v)] for v in boxes.labels[keep]], dtype=torch.long)
        part = lambda x: None if x is None else x[keep]
        boxes = Boxes(boxes.xyxy[keep], labels, part(boxes.scores), part(boxes.crowd))
    if mask is not None:
        table = torch.full((max(256, int(mask.labels.max()) + 1),), IGNORED)
        table[list(new)] = torch.tensor(list(new.values()))
        if mask.instances is not None and keep is not None and len(mask.instances) == len(keep):
            instances = mask.instances[keep]
        mask = Masks(table[mask.labels], instances)
    return replace(record, boxes=boxes, mask=mask, labels=tuple(sorted(new[v] for v in record.labels if v in new)))


def _nameless(records: Records) -> Records:
    """The pictures alone, with their keys and domains."""
    twin = records.showing(lambda r: Record(key=r.key, image=r.image, domain=r.domain), records.class_names)
    twin.columns = {name: values for name, values in records.columns.items() if name not in TELLING}
    return twin
