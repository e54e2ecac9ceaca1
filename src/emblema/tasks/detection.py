"""Object detection: boxes of classes, out of words.

A model is used zero-shot (`engine/regions.py`: proposals classified by their pictures); a `Detector`, or a model that
was trained to find things, as it is. All classes compete in one run (generalised); AP of base, novel, rare, common and
frequent classes are means of its classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emblema.core.batch import Dataset, Record
from emblema.core.boxes import NOTHING, Boxes
from emblema.core.card import TaskCard
from emblema.core.errors import BadData
from emblema.data.datasets import columns
from emblema.engine.regions import ZeroShotDetector
from emblema.tasks.average_precision import AREAS, THRESHOLDS, Matched, average_precision, matched, recall
from emblema.tasks.base import Detector, Outcome, Task
from emblema.tasks.protocols import short_hash, template_id
from emblema.tasks.segmentation import AT_ONCE, SHOWN, rgb, sampled, spread
from emblema.tasks.statistics import Interval, bootstrap
from emblema.tasks.vocabulary import Vocabulary, vocabulary
from emblema.tasks.wording import wording

AT = {"AP": slice(0, len(THRESHOLDS)), "AP50": slice(0, 1), "AP75": slice(5, 6)}  # thresholds of overlap


@dataclass(kw_only=True)
class Detection(Task):
    """Average precision as COCO defines it, at most 100 detections an image and class; LVIS's rules where the data say
    which classes were looked for (300 detections an image).
    """

    card = TaskCard(
        name="detection",
        title="Object detection",
        section="3.4 object detection",
        metric="AP",
        needs=("boxes",),
    )
    images: int = 100  # of the split, evenly spread; 0: all
    kind: str = "boxes"  # what must overlap; "masks" where truth and detector have them
    novel: str = ""  # novel classes: names with commas, or "ov-coco"; default: as the data mark them
    proposals: str = ""  # JSON {key of the picture: [[x1, y1, x2, y2, score], ...]} in place of those found here
    templates: str = ""  # a template set, or a text file with a template a line; default: the data set's own
    resamples: int = 200  # of the bootstrap
    zero_shot: ZeroShotDetector = field(default_factory=ZeroShotDetector)

    def __post_init__(self) -> None:
        if self.kind not in ("boxes", "masks"):
            raise BadData(f"kind {self.kind!r}: choose boxes or masks")

    def run(self, model, data) -> Outcome:
        told, rows = vocabulary(data, self.novel), spread(len(data), self.images)
        given = None if not self.proposals else read_proposals(self.proposals)
        found, truth, shown = [], [], []
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            records = [data[i] for i in some]
            truth += [truth_of(record, told, self.kind) for record in records]
            found += self._said(model, data, records, told.names, given)
            if len(shown) < SHOWN:
                shown += [{"index": i, "key": record.key} for i, record in zip(some, records)]
        marks = _federated(data, rows, told)
        outcome = score(
            matched(found, truth, len(told.names), kind=self.kind, **marks), told, truth, len(rows), self.resamples
        )
        outcome.predictions = [_shown(one, data, found[k], told.names) for k, one in enumerate(shown[:SHOWN])]
        outcome.notes += sampled(len(rows), len(data))
        if marks:
            outcome.notes.append("LVIS rules: a class counts on an image only where it was looked for; 300 detections")
        return outcome

    def _said(
        self, model: Any, data: Dataset, records: Sequence[Record], names: list[str], given: dict | None
    ) -> list[Boxes]:
        images = [rgb(record) for record in records]
        if _finds(model):
            detector: Detector = model
            return list(detector.detect(images, names))
        if self.kind == "masks":
            raise BadData("a model used zero-shot gives boxes only: measure --kind boxes")
        proposed = None
        if given is not None:
            if missing := [r.key for r in records if r.key not in given]:
                raise BadData(
                    f"{self.proposals} has no proposals for {missing[0]}: give a list, empty or not, for each"
                )
            proposed = [given[r.key] for r in records]
        return self.zero_shot.detect(model, images, names, wording(self.templates, data)[1], proposed)

    def options(self) -> dict[str, Any]:
        return {"images": self.images, "kind": self.kind} | ({"novel": self.novel} if self.novel else {})

    def variant(self) -> str:
        return "masks" if self.kind == "masks" else ""

    def system(self, model) -> str:
        if _finds(model):
            return "grounded"
        return f"zero-shot-{self.zero_shot.regions}" + (
            f"-{short_hash(Path(self.proposals).read_text(encoding='utf-8'))[:6]}" if self.proposals else ""
        )

    def template_set(self, model, data) -> str:
        return "" if _finds(model) else template_id(*wording(self.templates, data))


def _finds(model: Any) -> bool:
    """Whether it finds things itself: a student, or a model with a detector of its own."""
    return not hasattr(model, "vlm") or model.finds


def score(found: list[Matched], told: Vocabulary, truth: Sequence[Boxes], images: int, resamples: int = 200) -> Outcome:
    """Metrics and the table of classes from what became of each class's detections."""
    there = torch.tensor([bool(one.things[0].sum()) for one in found])
    if not there.any():
        raise BadData("no thing of a class that competes in these images: nothing can be measured")
    drawn: dict[bytes, Tensor] = {}

    def all_ap(weights: Tensor) -> Tensor:
        """AP without regard to area [C, T, R], once for all metrics."""
        key = weights.numpy().tobytes()
        if key not in drawn:
            drawn[key] = torch.stack([average_precision(one, weights, slice(0, 1))[0] for one in found])
        return drawn[key]

    def interval(name: str, among: Tensor) -> Interval:
        # a class that no drawn image shows leaves the mean, as one that the data do not show
        return bootstrap(lambda w: all_ap(w)[among][:, AT[name]].nanmean((0, 1)), images, resamples=resamples)

    parts = {"": torch.ones_like(there)} | {f"_{k}": v for k, v in (told.of_novel() | told.groups).items()}
    out = {f"{name}{part}": interval(name, among) for part, among in parts.items() if there[among].any() for name in AT}
    each = torch.stack([average_precision(one)[..., 0] for one in found])  # [C, A, T]
    recalls = torch.stack([recall(one) for one in found])
    plain = lambda x: Interval(float(x.nanmean()), torch.nan, torch.nan)
    out |= {f"AP_{a}": plain(each[:, i]) for i, a in enumerate(AREAS) if i and not each[:, i].isnan().all()}
    out |= {f"AR100{part}": plain(recalls[among, 0]) for part, among in parts.items() if there[among].any()}
    table = [
        {
            "class": name,
            "things": int(found[c].things[0].sum()),
            "AP": float(each[c, 0].mean()),
            "AP50": float(each[c, 0, 0]),
            "AR100": float(recalls[c, 0].mean()),
        }
        | ({"novel": bool(told.novel[c])} if told.novel is not None else {})
        for c, name in enumerate(told.names)
    ]
    crowds = sum(int(boxes.crowd.sum()) for boxes in truth if boxes.crowd is not None)
    sizes = {"images": images, "classes": len(told.names), "things": sum(map(len, truth)) - crowds, "crowds": crowds}
    return Outcome(metrics=out, tables={"per_class": table}, sizes=sizes)


def truth_of(record: Record, told: Vocabulary, kind: str = "boxes") -> Boxes:
    """The boxes of a record whose classes compete, numbered as in the vocabulary; none where it shows none."""
    boxes = record.boxes
    if boxes is None:  # readers give None to a picture without things
        return Boxes(torch.empty(0, 4), torch.empty(0, dtype=torch.long))
    if boxes.labels is None:
        raise BadData(f"{record.key}: boxes without labels; detection is of classes")
    if kind == "masks" and boxes.masks is None:
        if record.mask is None or record.mask.instances is None:
            raise BadData(f"{record.key} has no masks of its things: measure --kind boxes")
        boxes = replace(boxes, masks=record.mask.instances)
    labels = told.number[boxes.labels]
    return replace(boxes, labels=labels).at(labels != NOTHING)


def read_proposals(path: str | Path) -> dict[str, Boxes]:
    """{key: boxes} from JSON {key: [[x1, y1, x2, y2] or [x1, y1, x2, y2, score], ...]}, in pixels of the picture."""
    try:
        said = json.loads(Path(path).read_text(encoding="utf-8"))
        rows = {key: torch.tensor(value, dtype=torch.float32) for key, value in said.items()}
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise BadData(
            f"{path} holds no proposals: {error}. Expected JSON {{key: [[x1, y1, x2, y2, score], ...]}}"
        ) from None
    rows = {key: value if value.numel() else torch.empty(0, 4) for key, value in rows.items()}
    if wrong := [k for k, v in rows.items() if v.dim() != 2 or v.shape[1] not in (4, 5) or not v.isfinite().all()]:
        raise BadData(f"{path}: the boxes of {wrong[0]} are not [x1, y1, x2, y2] or [x1, y1, x2, y2, score]")
    return {k: Boxes(v[:, :4], scores=v[:, 4] if v.shape[1] == 5 else None) for k, v in rows.items()}


def _federated(data: Dataset, rows: Sequence[int], told: Vocabulary) -> dict[str, Any]:
    """LVIS's marks where the data carry them: which classes are surely absent, which are not exhaustively marked."""
    if "negative" not in getattr(data, "columns", ()):
        return {}
    number = lambda classes: [n for n in told.number[list(classes or ())].tolist() if n != NOTHING]
    absent, partial = ([number(column[i]) for i in rows] for column in columns(data, "negative", "not_exhaustive"))
    return {"absent": absent, "partial": partial, "most": 300, "most_an_image": 300}


def _shown(one: dict[str, Any], data: Dataset, found: Boxes, names: Sequence[str]) -> dict[str, Any]:
    from emblema.report.draw import draw_boxes

    likely = found if found.scores is None else found.at(found.scores.argsort(descending=True)[:8])
    return {**one, "image": draw_boxes(rgb(data[one["index"]]), likely, names)}
