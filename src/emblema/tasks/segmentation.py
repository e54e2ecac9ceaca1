"""Semantic segmentation: a class for each pixel, out of words.

A model is used zero-shot (`engine/dense.py`), a `Segmenter` as it is. All classes compete in one run; IoU is read from
one confusion matrix of all pixels. What is no class is named by `background`: with and without it, numbers do not
compare.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from emblema.core.batch import Dataset, Record
from emblema.core.boxes import NOTHING
from emblema.core.card import TaskCard
from emblema.core.errors import BadData
from emblema.engine.dense import BACKGROUNDS, ZeroShotSegmenter
from emblema.tasks import dense_metrics as dense
from emblema.tasks.base import Outcome, Segmenter, Task
from emblema.tasks.metrics import refuse_nan
from emblema.tasks.protocols import template_id
from emblema.tasks.statistics import Interval, bootstrap
from emblema.tasks.vocabulary import Vocabulary, vocabulary
from emblema.tasks.wording import wording

SHOWN = 12  # pictures kept for a page
AT_ONCE = 16


@dataclass(kw_only=True)
class Segmentation(Task):
    """Semantic segmentation against class prompts.

    `background`: "none" leaves pixels of no class out (VOC20); otherwise they are a class more (VOC21), which a model
    says by "prompts", "threshold" or "cam" (see `engine/dense.py`), and a student in its own way ("own").
    `labels`: "all" classes compete, or only those of the "image" (weak supervision), or "each" class of an image is
    asked for alone against all else (the episodes of PASCAL-5i, Shaban et al. 2017). The three are never in one table.
    """

    card = TaskCard(
        name="segmentation",
        title="Semantic segmentation",
        section="3.4 semantic segmentation",
        metric="mIoU",
        needs=("masks",),
    )
    images: int = 200  # of the split, evenly spread; 0: all
    background: str = "none"
    labels: str = "all"
    novel: str = ""  # unseen classes: names with commas, or "voc-15-5"; default: as the data mark them
    templates: str = ""  # a template set, or a text file with a template a line; default: the data set's own
    resamples: int = 1000  # of the bootstrap
    zero_shot: ZeroShotSegmenter = field(default_factory=ZeroShotSegmenter)

    def __post_init__(self) -> None:
        for name, value, known in (("background", self.background, (*BACKGROUNDS, "own")),
                                   ("labels", self.labels, ("all", "image", "each"))):  # fmt: skip
            if value not in known:
                raise BadData(f"{name} {value!r}: choose {', '.join(known)}")
        if self.labels == "each" and self.background == "none":
            raise BadData('labels "each" asks for one class against all else: set a background, with none it wins')

    def run(self, model, data) -> Outcome:
        told, rows = vocabulary(data, self.novel), spread(len(data), self.images)
        matrices, shown = [], []
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            records = [data[i] for i in some]
            truths = [truth_of(record, told, self.background != "none") for record in records]
            judged = self._judged(model, data, records, truths, told)
            for i, record, truth, (said, matrix) in zip(some, records, truths, judged):
                matrices.append(matrix)
                if len(shown) < SHOWN:
                    shown.append({"index": i, "key": record.key, "map": said, "truth": truth})
        outcome = score(torch.stack(matrices), told, self.background != "none", self.resamples)
        outcome.predictions = [_shown(one, data, told.names) for one in shown]
        outcome.notes += sampled(len(rows), len(data))
        return outcome

    def _judged(
        self, model: Any, data: Dataset, records: Sequence[Record], truths: Sequence[Tensor], told: Vocabulary
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The predicted label map of each picture, in the size of its truth, and its confusion matrix."""
        images, nothing, background = [rgb(record) for record in records], len(told.names), self.background != "none"
        if self.labels == "all":
            maps = iter(self._segment(model, data, images, told.names))
            for truth in truths:
                said = to_map(next(maps), truth, nothing, background)
                yield said, dense.confusion(said, truth, nothing + background)
            return
        for image, truth in zip(images, truths):
            there = [c for c in truth.unique().tolist() if c < nothing]
            said = torch.full_like(truth, nothing if background else 0)
            matrix = torch.zeros(nothing + background, nothing + background, dtype=torch.long)
            for asked in [[c] for c in there] if self.labels == "each" else [there]:
                found, others = said, torch.zeros_like(truth, dtype=torch.bool)
                if asked:
                    (one,) = self._segment(model, data, [image], [told.names[c] for c in asked])
                    found = torch.tensor([*asked, nothing])[to_map(one, truth, len(asked), background)]
                    others = ~torch.isin(truth, torch.tensor([*asked, NOTHING]))
                    said = torch.where(found < nothing, found, said)
                matrix += dense.confusion(found, truth.masked_fill(others, nothing), nothing + background)
            yield said, matrix

    def _segment(self, model: Any, data: Dataset, images: list, names: list[str]) -> Any:
        if not hasattr(model, "vlm"):
            segmenter: Segmenter = model
            return segmenter.segment(images, names)
        if self.background == "own":
            raise BadData('background "own" is of students; for a model choose none, prompts, threshold or cam')
        templates = wording(self.templates, data)[1]
        return self.zero_shot.segment(model, images, names, templates, self.background)

    def options(self) -> dict[str, Any]:
        background = "ignored" if self.background == "none" else "class"
        return {"images": self.images, "background": background, "labels": self.labels} | (
            {"novel": self.novel} if self.novel else {}
        )

    def variant(self) -> str:
        return "-".join(
            [
                *(["image-labels"] if self.labels == "image" else []),
                *(["episodes"] if self.labels == "each" else []),
                *(["background"] if self.background != "none" else []),
            ]
        )

    def system(self, model) -> str:
        kind = "maskclip" if self.zero_shot.features == "values" else f"zero-shot-{self.zero_shot.features}"
        return kind if self.background == "none" else f"{kind}-{self.background}"

    def template_set(self, model, data) -> str:
        return template_id(*wording(self.templates, data)) if hasattr(model, "vlm") else ""


def score(matrices: Tensor, told: Vocabulary, background: bool = False, resamples: int = 1000) -> Outcome:
    """Metrics and the table of classes from the images' confusion matrices [N, C, C]."""
    matrix, n = matrices.sum(0), len(matrices)
    if not matrix.sum():
        raise BadData("no pixel of these images has a class that competes: nothing can be measured")

    def interval(metric) -> Interval:
        return bootstrap(dense.over_images(matrices, metric), n, resamples=resamples)

    out = {
        "mIoU": interval(dense.mean_iou),
        "pixel_accuracy": interval(dense.pixel_accuracy),
        "class_accuracy": interval(lambda m: dense.class_accuracy(m).nanmean(-1)),
    }
    novel = told.novel
    if novel is not None and not matrix.sum(1)[: len(novel)][novel].any():  # the images show nothing unseen
        novel = None
    if novel is not None:
        if background:  # it is neither seen nor unseen
            novel = torch.cat([novel, torch.tensor([False])])
        seen = ~novel & (torch.arange(len(novel)) < len(told.names))
        out["mIoU_seen"] = interval(lambda m: dense.mean_iou(m, seen))
        out["mIoU_unseen"] = interval(lambda m: dense.mean_iou(m, novel))
        out["hIoU"] = interval(lambda m: dense.harmonic(dense.mean_iou(m, seen), dense.mean_iou(m, novel)))
    names = [*told.names, *(["(background)"] if background else [])]
    iou, accuracy = dense.iou(matrix), dense.class_accuracy(matrix)
    table = [
        {"class": name, "pixels": int(matrix[c].sum()), "IoU": float(iou[c]), "accuracy": float(accuracy[c])}
        | ({"unseen": bool(novel[c])} if novel is not None else {})
        for c, name in enumerate(names)
    ]
    sizes = {"images": n, "classes": len(names), "pixels": int(matrix.sum())}
    return Outcome(metrics=out, tables={"per_class": table}, sizes=sizes)


def truth_of(record: Record, told: Vocabulary, background: bool) -> Tensor:
    """The label map [H, W] in numbers of the vocabulary; 255 is not counted, C is the background where it counts.

    Background is the class of that name where the data have one (255 is then the void around things), else every pixel
    without a class that lies in no crowd.
    """
    if record.mask is None:
        raise BadData(f"{record.key} has no mask: segmentation needs one of each picture (COCO json with outlines)")
    labels = record.mask.labels
    truth = told.number[labels]
    if not background:
        return truth
    if told.background is not None:
        return truth.masked_fill(labels == told.background, len(told.names))
    nothing = labels == NOTHING
    boxes, things = record.boxes, record.mask.instances
    if boxes is not None and boxes.crowd is not None and things is not None and boxes.crowd.any():
        nothing &= ~things[boxes.crowd].any(0)
    return truth.masked_fill(nothing, len(told.names))


def to_map(said: Tensor, truth: Tensor, classes: int, background: bool) -> Tensor:
    """A segmenter's scores or label map as a label map in the size of `truth`; C stands for the background.

    Scores are enlarged before the best is taken. Without a background, the best class counts also where the segmenter
    would say none; a label map has no second best, so none there is wrong for every class.
    """
    if said.dim() == 2:
        if said.shape != truth.shape:
            said = F.interpolate(said[None, None].double(), truth.shape, mode="nearest")[0, 0].long()
        if background:
            return said.masked_fill(said == NOTHING, classes)
        if (said == NOTHING).any():
            raise BadData(
                "this segmenter says 255 (none of them) without a background to be counted: let it give scores, or "
                "measure with --background own"
            )
        return said
    refuse_nan(said.flatten(), "scores of pixels")
    if len(said) not in (classes, classes + 1):
        raise BadData(f"{len(said)} score maps for {classes} classes: give one a class, and one for none of them")
    said = said if background else said[:classes]
    if said.shape[1:] != truth.shape:
        said = F.interpolate(said[None].float(), truth.shape, mode="bilinear", align_corners=False)[0]
    return said.argmax(0)


def rgb(record: Record) -> Any:
    """The picture of a record, RGB."""
    from emblema.data.pictures import flatten, open_picture

    if record.image is None or isinstance(record.image, list):
        raise BadData(f"{record.key} has no single picture")
    return flatten(open_picture(record.image), (255, 255, 255))


def spread(count: int, most: int) -> list[int]:
    """At most `most` numbers below `count`, evenly spread; 0: all."""
    if not count:
        raise BadData("the split is empty")
    return list(range(count)) if not most or most >= count else [i * count // most for i in range(most)]


def sampled(taken: int, count: int) -> list[str]:
    return [] if taken == count else [f"{taken} of {count} images, evenly spread; --images 0 measures all"]


def _shown(one: dict[str, Any], data: Dataset, names: Sequence[str]) -> dict[str, Any]:
    from emblema.report.draw import draw_map, side_by_side

    image = rgb(data[one["index"]])
    drawn = [draw_map(image, m, names) for m in (one["truth"], one["map"])]
    return {"index": one["index"], "key": f"{one['key']}: truth, then prediction", "image": side_by_side(*drawn)}
