"""What every distillation shares: a frozen teacher, pictures with boxes or masks, and a student learnt in one loop.

A picture is squeezed to a square of `image_size` pixels, its boxes and masks with it. What the teacher says of a batch
(`targets`) is computed without gradients, once a picture where pictures are not flipped. Annotations of classes that
the data mark as novel are hidden from every student.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from emblema.core import find
from emblema.core.batch import Batch, Dataset, Record
from emblema.core.boxes import NOTHING, Boxes, Masks
from emblema.core.errors import BadCheckpoint, BadData, NotFitted
from emblema.core.method import Method, Optim
from emblema.data.pictures import flatten, open_picture
from emblema.data.templates import templates_for
from emblema.encoders.tokenizers import checked_words
from emblema.engine import seed
from emblema.engine.crops import CropVectors
from emblema.engine.features import weights_id
from emblema.engine.loader import Loader
from emblema.engine.optimise import Step, optimise
from emblema.engine.train import preprocess_of
from emblema.frameworks.vlm import VLM
from emblema.model import Model, checked_labels
from emblema.parts.prompts import hand_written
from emblema.parts.proposals import Proposals

OnStep = Callable[[Step], None]
AT_ONCE = 16  # pictures
Student = Any  # the module of `build`: what it holds is known to the system that built it


def student_recipe(**changes: Any) -> Optim:
    """AdamW at 0.001 with a cosine, batches of 16."""
    recipe: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.01, "batch_size": 16, "epochs": 10.0}
    return Optim(**recipe | changes)


@dataclass(kw_only=True)
class Distill(Method):
    """From a frozen teacher and pictures to a student of a dense task: inherit from `Segmenting` or `Detecting`.

    A system defines `build(teacher, class_names)` and `losses(student, batch)`; it may define `targets(teacher,
    batch)`. The card's `needs` name what a record must have ("boxes", "masks", "texts"); with "no pictures" nothing is
    trained. `self.seen` says which class names are not novel. The teacher is never changed.
    """

    templates: tuple[str, ...] = ()  # of the class texts; empty: those of the data set
    image_size: int = 128  # pictures are squeezed to squares of so many pixels
    flips: bool = False  # mirror half of the training pictures; the teacher then looks at every batch anew
    seed: int = 1
    optim: Optim = field(default_factory=student_recipe)

    # -- what a system says ---------------------------------------------------------------------------------

    def build(self, teacher: VLM, class_names: Sequence[str]) -> nn.Module:
        raise NotImplementedError(f"{type(self).__name__} must define build()")

    def targets(self, teacher: VLM, batch: Batch) -> dict[str, Any]:
        """What the teacher says of a batch: {name: [B, ...], or a list of B tensors where shapes differ}."""
        return {}

    def losses(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} must define losses()")

    def text(self, teacher: VLM, class_names: Sequence[str]) -> Tensor:
        """The teacher's class vectors, averaged over the templates: [C, D] unit. They are kept."""
        kept = vars(self).setdefault("_texts", {})
        asked = (id(teacher), tuple(class_names), self.wording)
        if asked not in kept:
            with torch.no_grad():
                kept[asked] = hand_written(teacher, class_names, self.wording)
        return kept[asked]

    @property
    def wording(self) -> tuple[str, ...]:
        return self.templates or vars(self).get("_wording") or tuple(templates_for("plain"))

    def seen(self, class_names: Sequence[str]) -> Tensor:
        """True for class names that the data do not mark as novel: bool [C]."""
        novel = vars(self).get("_facts", {}).get("novel", [])
        return torch.tensor([name not in novel for name in class_names], dtype=torch.bool)

    # -- fit ------------------------------------------------------------------------------------------------

    def fit(self, teacher: Model | VLM, data: Dataset, on_step: OnStep | None = None) -> Self:
        """Learn a student from pictures. Returns self."""
        self._model = teacher if isinstance(teacher, Model) else Model(teacher, preprocess_of(teacher))
        self._names, self._wording = checked_labels(data.class_names), tuple(templates_for(data.card.name))
        checked_words(self._model.vlm.text, self._names)
        vars(self)["_texts"], vars(self)["_crops"] = {}, {}
        novel = data.novel_classes() if hasattr(data, "novel_classes") else []  # type: ignore[attr-defined]
        vars(self)["_facts"] = {"novel": [name for name in self._names if name in novel]}
        with seed.forked(self.seed, "build"):
            student = self.build(self._model.vlm, self._names)
        if "no pictures" not in self.card.needs:
            self.learn(student, data, on_step)
        self._module = student.eval()
        self._module.zero_grad(set_to_none=True)
        return self

    def learn(self, student: Student, data: Dataset, on_step: OnStep | None = None) -> None:
        """Change `student` by what `data` show; the default is one run of the optimiser."""
        if not len(data):
            raise BadData(f"no training pictures in {data.card.name}")
        optim = replace(self.optim, batch_size=min(self.optim.batch_size, len(data)))
        loader = Loader(
            dataset=data, batch_size=optim.batch_size, size=self.image_size, seed=self.seed, make_batch=self.collate
        )
        total = optim.total(loader.epoch_steps)
        optimise(
            self,
            student,
            self._told(loader.iterate(0, total)),
            optim,
            total_steps=total,
            epoch_steps=loader.epoch_steps,
            random_seed=self.seed,
            on_step=on_step,
        )

    def _told(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches with the teacher's targets; those of pictures that are not flipped are kept by key."""
        kept: dict[str, dict[str, Tensor]] = {}
        for batch in batches:
            if self.flips or any(key not in kept for key in batch.keys):
                with torch.no_grad():
                    batch.targets = self.targets(self._model.vlm, batch)
                for i, key in enumerate(batch.keys if not self.flips else ()):
                    kept[key] = {name: value[i] for name, value in batch.targets.items()}
            else:
                rows = [kept[key] for key in batch.keys]
                batch.targets = {name: _stacked([row[name] for row in rows]) for name in rows[0]}
            yield batch

    def collate(self, records: Sequence[Record], generator: torch.Generator | None = None) -> Batch:
        """Records as a batch: images uint8 [B, 3, S, S], boxes and masks of seen classes in the same pixels."""
        rows = [self._row(record) for record in records]
        if self.flips and generator is not None:
            mirrored = torch.rand(len(rows), generator=generator) < 0.5
            rows = [_mirrored(*row) if m else row for row, m in zip(rows, mirrored)]
        images, boxes, masks = zip(*rows)
        batch = Batch(keys=[record.key for record in records], images=torch.stack(images), generator=generator)
        texts = [record.text for record in records]
        for name, values in (("boxes", boxes), ("masks", masks), ("texts", texts)):
            if all(value is not None for value in values):
                setattr(batch, name, list(values))
            elif name in self.card.needs:
                bare = next(r.key for r, value in zip(records, values) if value is None)
                said = {"texts": "captions"}.get(name, name)
                raise BadData(f"{bare} has no {said}: {self.card.name} learns from pictures with {said}")
        return batch

    def _row(self, record: Record) -> tuple[Tensor, Boxes | None, Masks | None]:
        picture = rgb(record)
        side, w, h = self.image_size, picture.width, picture.height
        image, boxes, masks = self.pixels([picture])[0], record.boxes, record.mask
        hidden = ~self.seen(vars(self).get("_names", ()))
        if boxes is not None:
            boxes, stays = boxes.visible(w, h)
            if masks is not None and masks.instances is not None and len(masks.instances) == len(stays):
                masks = replace(masks, instances=masks.instances[stays])
            scale = torch.tensor([side / w, side / h] * 2)
            boxes = replace(boxes, xyxy=boxes.xyxy * scale, areas=None, masks=_squeezed(boxes.masks, side))
        if masks is not None:
            labels = _squeezed(masks.labels[None], side)[0]  # type: ignore[index]
            masks = Masks(labels, _squeezed(masks.instances, side))
        if hidden.any():
            boxes, masks = _without(hidden, boxes, masks)
        return image, boxes, masks

    def pixels(self, pictures: Sequence[Any]) -> Tensor:
        """RGB pictures as uint8 [B, 3, S, S]."""
        out = torch.empty(len(pictures), 3, self.image_size, self.image_size, dtype=torch.uint8)
        for i, picture in enumerate(pictures):
            whole = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
            whole = whole.view(1, picture.height, picture.width, 3).permute(0, 3, 1, 2)
            out[i] = F.interpolate(whole, (self.image_size, self.image_size), mode="bilinear", antialias=True)[0]
        return out

    # -- a fitted student -----------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def module_(self) -> nn.Module:
        if "_module" not in vars(self):
            raise NotFitted(f"{type(self).__name__} has learnt nothing yet: call fit(teacher, data) first")
        return self._module

    @property
    def class_names_(self) -> list[str]:
        self.module_  # noqa: B018
        return self._names

    def save(self, folder: Path | str) -> None:
        """Write what was learnt: config.json and learnt.safetensors. The teacher is named, not copied."""
        from safetensors.torch import save_file

        module, folder = self.module_, Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {n: t.detach().contiguous().clone() for n, t in module.state_dict().items()}
        save_file(state, folder / "learnt.safetensors")
        said = {
            "format": "emblema",
            "framework": "distill",
            "kind": "student",
            "system": self.card.name,
            "fields": {f.name: _plain(getattr(self, f.name)) for f in fields(self)},
            "class_names": self._names,
            "templates": self.wording,
            "facts": vars(self).get("_facts", {}),
            "teacher": {"name": self._model.name, "weights": weights_id(self._model.vlm)},
        }
        (folder / "config.json").write_text(json.dumps(said, indent=1, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | str, teacher: Model | VLM | str | None = None) -> Self:
        """A fitted student from its folder. `teacher` is the model that it was distilled from (default: by its name).

        Raises `BadCheckpoint` when the folder holds no student, or the weights are not the teacher's.
        """
        from safetensors.torch import load_file

        from emblema.model import load as load_model

        folder = Path(folder)
        if not (folder / "config.json").exists() or not (folder / "learnt.safetensors").exists():
            raise BadCheckpoint(f"{folder} holds no student: expected config.json and learnt.safetensors in it")
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if said.get("framework") != "distill":
            raise BadCheckpoint(f"{folder} holds {said.get('framework', 'something else')}, no distilled student")
        system: Any = cls if "card" in vars(cls) else find.find("distill", said["system"])
        if system.card.name != said["system"]:
            raise BadCheckpoint(f"{folder} holds a student of {said['system']}, not of {system.card.name}")
        settings = {k: _tuples(v) for k, v in said["fields"].items()}
        optim = Optim(**{k: _tuples(v) for k, v in settings.pop("optim").items()})
        fitted = system(optim=optim, **settings)
        if teacher is None or isinstance(teacher, str):
            teacher = load_model(teacher or said["teacher"]["name"])
        fitted._model = teacher if isinstance(teacher, Model) else Model(teacher, preprocess_of(teacher))
        found = weights_id(fitted._model.vlm)
        if found != said["teacher"]["weights"]:
            raise BadCheckpoint(
                f"{folder} was distilled from {said['teacher']['name']} with weights {said['teacher']['weights']}, got "
                f"weights {found}: give the same teacher"
            )
        fitted._names, fitted._wording = list(said["class_names"]), tuple(said["templates"])
        vars(fitted)["_facts"] = said.get("facts", {})
        with seed.forked(fitted.seed, "build"):
            module = fitted.build(fitted._model.vlm, fitted._names)
        module.load_state_dict({n: t.clone() for n, t in load_file(folder / "learnt.safetensors").items()})
        fitted._module = module.eval()
        return fitted


@dataclass(kw_only=True)
class Segmenting(Distill):
    """A distillation whose student labels pixels; a system defines `maps` besides."""

    def maps(self, student: Student, images: Tensor, text: Tensor) -> Tensor:
        """Scores of classes with the vectors `text` [C, D] in uint8 [B, 3, S, S]: [B, C, h, w], or [B, C + 1, h, w]
        where the last plane is "none of them"."""
        raise NotImplementedError(f"{type(self).__name__} must define maps()")

    def truth(self, batch: Batch, size: Sequence[int]) -> Tensor:
        """Label maps of a batch, 255 where nothing is known, each place as the nearest pixel: long [B, h, w]"""
        if batch.masks is None:
            raise BadData(f"{self.card.name} learns from label maps with these settings: give data with masks")
        labels = torch.stack([mask.labels for mask in batch.masks])[:, None].double()
        return F.interpolate(labels, list(size), mode="nearest-exact")[:, 0].long()

    def segment(self, images: Sequence[Any], labels: Sequence[str]) -> Iterator[Tensor]:
        """[C, h, w] or [C + 1, h, w] of each RGB picture."""
        student, text = self.module_, self.text(self._model.vlm, checked_labels(labels))
        for start in range(0, len(images), AT_ONCE):
            with torch.no_grad():
                yield from self.maps(student, self.pixels(images[start : start + AT_ONCE]), text).float().cpu()

    def predict(self, data: Dataset) -> list[Tensor]:
        """Scores of the classes of `data` for each of its pictures."""
        self.module_  # noqa: B018
        return list(self.segment([rgb(data[i]) for i in range(len(data))], data.class_names))

    scores = predict


@dataclass(kw_only=True)
class Detecting(Distill):
    """A distillation whose student finds things; a system defines `found` besides."""

    def found(self, student: Student, images: Tensor, text: Tensor) -> list[Boxes]:
        """Detections of classes with the vectors `text` [C, D] in uint8 [B, 3, S, S], in pixels of these squares: with
        labels and scores, overlapping ones suppressed."""
        raise NotImplementedError(f"{type(self).__name__} must define found()")

    @staticmethod
    def picture(pixels: Tensor) -> Image.Image:
        """uint8 [3, S, S] as a picture for the teacher."""
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())

    def proposals(self, batch: Batch, most: int) -> list[Tensor]:
        """The best `most` boxes of each picture, whatever their class: [M, 4] each"""
        assert batch.images is not None
        find = Proposals(most=most, side=self.image_size // 2)
        return [find(image).xyxy for image in batch.images]

    def vectors(self, batch: Batch, boxes: Sequence[Tensor], scales: Sequence[float] = (1.0, 1.5)) -> list[Tensor]:
        """What the teacher says of the boxes [M, 4] of each picture, cropped in these sizes: [M, D] unit each"""
        assert batch.images is not None
        kept = vars(self).setdefault("_crops", {})
        if scales not in kept:
            kept[scales] = CropVectors(self._model, scales)
        return kept[scales]([self.picture(image) for image in batch.images], [Boxes(xyxy) for xyxy in boxes])

    def detect(self, images: Sequence[Any], labels: Sequence[str]) -> Iterator[Boxes]:
        """`Boxes` of each RGB picture, in its pixels."""
        student, text = self.module_, self.text(self._model.vlm, checked_labels(labels))
        for start in range(0, len(images), AT_ONCE):
            some = images[start : start + AT_ONCE]
            with torch.no_grad():
                found = self.found(student, self.pixels(some), text)
            for picture, boxes in zip(some, found):
                scale = torch.tensor([picture.width, picture.height] * 2) / self.image_size
                yield replace(boxes, xyxy=boxes.xyxy * scale)

    def predict(self, data: Dataset) -> list[Boxes]:
        """Detections of the classes of `data` in each of its pictures."""
        self.module_  # noqa: B018
        return list(self.detect([rgb(data[i]) for i in range(len(data))], data.class_names))

    scores = predict


@torch.no_grad()
def crop_accuracy(model: Model, data: Any, scales: Sequence[float] = (1.0, 1.5), most: int = 200) -> dict[str, float]:
    """How well the teacher names the crops of annotated things among all class names: {"base": share, "novel": share}.

    Crops of each scale are normalised, added and normalised again. No distillation of a teacher that fails here says
    anything: `GATE` is the share of novel things that it should name.
    """
    from emblema.engine.regions import enlarged, inside

    pieces, truth = [], []
    for i in range(min(len(data), most)):
        record = data[i]
        if record.boxes is None or record.boxes.labels is None:
            continue
        picture = rgb(record)
        corners = [inside(enlarged(record.boxes.xyxy, s), picture).round().int().tolist() for s in scales]
        pieces += [picture.crop(tuple(box)) for boxes in zip(*corners) for box in boxes]
        truth += record.boxes.labels.tolist()
    if not truth:
        raise BadData(f"{data.card.name} has no boxes: the teacher's crops cannot be judged")
    z = F.normalize(model.encoder.images(pieces)[0]["pooled"].unflatten(0, (len(truth), -1)).sum(1), dim=-1)
    text = model.class_vectors(data.class_names, templates_for(data.card.name))
    right = (z @ text.T).argmax(1) == torch.tensor(truth)
    names = data.novel_classes() if hasattr(data, "novel_classes") else []
    novel = torch.tensor([data.class_names[label] in names for label in truth])
    parts = {"base": ~novel, "novel": novel}
    return {part: float(right[among].float().mean()) for part, among in parts.items() if among.any()}


GATE = 0.8


def rgb(record: Record) -> Any:
    """The picture of a record, RGB; transparency is laid over white."""
    if record.image is None or isinstance(record.image, list):
        raise BadData(f"{record.key} has no single picture")
    return flatten(open_picture(record.image), (255, 255, 255))


def _squeezed(masks: Tensor | None, side: int) -> Tensor | None:
    """Label maps or masks [N, H, W] at [N, side, side], each pixel as the nearest."""
    if masks is None or masks.shape[1:] == (side, side):
        return masks
    if not len(masks):
        return masks.new_empty(0, side, side)
    return F.interpolate(masks[None].double(), (side, side), mode="nearest-exact")[0].to(masks.dtype)


def _mirrored(image: Tensor, boxes: Boxes | None, masks: Masks | None) -> tuple[Tensor, Boxes | None, Masks | None]:
    flipped = lambda mask: None if mask is None else mask.flip(-1)
    if boxes is not None:
        x1, y1, x2, y2 = boxes.xyxy.unbind(1)
        xyxy = torch.stack([image.shape[-1] - x2, y1, image.shape[-1] - x1, y2], 1)
        boxes = replace(boxes, xyxy=xyxy, masks=flipped(boxes.masks))
    if masks is not None:
        masks = Masks(masks.labels.flip(-1), flipped(masks.instances))
    return image.flip(-1), boxes, masks


def _without(hidden: Tensor, boxes: Boxes | None, masks: Masks | None) -> tuple[Boxes | None, Masks | None]:
    """Annotations without those of hidden classes (bool [C])."""
    instances = None if masks is None else masks.instances
    if boxes is not None and boxes.labels is not None:
        kept = ~hidden[boxes.labels]
        instances = instances[kept] if instances is not None and len(instances) == len(boxes) else None
        boxes = boxes.at(kept)
    if masks is not None:
        gone = hidden.new_zeros(256)
        gone[: len(hidden)] = hidden
        masks = Masks(masks.labels.masked_fill(gone[masks.labels], NOTHING), instances)
    return boxes, masks


def _stacked(rows: list[Tensor]) -> Any:
    return torch.stack(rows) if len({row.shape for row in rows}) == 1 else rows


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
