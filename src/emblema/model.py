"""The Python face: a model that takes pictures and words as they come.

>>> import emblema
>>> model = emblema.load("default")
>>> model.classify(["cat.png"], ["cat", "dog"])  # [1, 2] probabilities
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from emblema.core.batch import Dataset, Level
from emblema.core.boxes import Boxes
from emblema.core.errors import BadData, NoSuchDoor
from emblema.core.find import find
from emblema.core.preprocess import Preprocess
from emblema.data.pictures import flatten, geometry, load_image, open_picture
from emblema.data.templates import fill
from emblema.encoders.tokenizers import checked_words
from emblema.engine.dense import ZeroShotSegmenter, label_map
from emblema.engine.encode import Encoder, Errors
from emblema.engine.features import Features
from emblema.engine.regions import ZeroShotDetector
from emblema.frameworks.vlm import VLM, frozen

Picture = str | Path | bytes | Image.Image | np.ndarray | Tensor
PLAIN = ("a photo of a {}.",)


def load(name_or_path: str | Path = "default", device: str = "auto", precision: str = "auto", **options: Any) -> Model:
    """A model by name, or from a checkpoint folder. It is frozen; nothing is downloaded.

    `precision` is "fp32", "bf16" or "auto" (bf16 where the hardware has it). Options: `batch_size`, `threads`,
    `cache` (the folder of the feature cache; None for the default, False for none).
    """
    from emblema.frameworks.pretrained import load_pretrained

    loaded = load_pretrained(name_or_path)
    sets = loaded.templates
    templates = sets.get("default", PLAIN) if isinstance(sets, dict) else sets
    name = Path(name_or_path).name or str(name_or_path)
    return Model(loaded.vlm, loaded.preprocess, templates or PLAIN, name, device=device, precision=precision, **options)


def load_any(name_or_path: str | Path = "default", *, system: str = "", **options: Any) -> Any:
    """A model, or the student or fitted transfer system that a folder holds: what `--model` takes.

    A student's folder has a `config.json` with {"kind": "student", "system": NAME}; the rest is the system's own: the
    class of that name in `distill` has `load(folder)`, which gives a `Segmenter`, a `Detector` or both
    (`emblema.tasks.base`) with a `name`. `system` names another class, or the `.py` file of your own: a folder never
    says which file of code to run.
    """
    about = Path(name_or_path) / "config.json"
    described = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
    if described.get("framework") == "transfer":
        return find("transfer", system or described["system"]).load(Path(name_or_path))  # type: ignore[attr-defined]
    if described.get("kind") != "student":
        if system:
            raise BadData(f"{name_or_path} holds no student: --system is for folders that `emblema distill` wrote")
        return load(name_or_path, **options)
    cls = find("distill", system or str(described.get("system", "")).removesuffix(".py"))
    return cls.load(Path(name_or_path))  # type: ignore[attr-defined]


class Model:
    """A frozen vision-language model with its preprocessing and templates.

    `.vlm` is the `VLM` beneath, in fp32, with towers, tokens and doors.
    """

    def __init__(
        self,
        vlm: VLM,
        preprocess: Preprocess,
        templates: Sequence[str] = PLAIN,
        name: str = "model",
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int = 64,
        threads: int | None = None,
        cache: str | Path | bool | None = None,
    ):
        self.vlm, self.preprocess, self.name = frozen(vlm), preprocess, name
        self.templates = checked_templates(templates)
        self.encoder = Encoder(
            vlm, preprocess, device=device, precision=precision, batch_size=batch_size, threads=threads
        )
        self.cache = None if cache is False else Features(None if cache is True else cache)

    def __repr__(self) -> str:
        return f"<emblema model {self.name}: {self.dim} dimensions, {self.preprocess.size} px, {self.precision}>"

    @property
    def dim(self) -> int:
        return self.vlm.dim

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    @property
    def precision(self) -> str:
        return self.encoder.precision

    def embed_images(self, images: Sequence[Picture] | Picture, *, projected: bool = True) -> Tensor:
        """Paths, bytes, PIL images or arrays, mixed as you like -> [N, D] unit.

        Arrays are [H, W] or [H, W, 1|3|4], uint8, or float within 0..1. With `projected=False` the features before
        the projection come out, [N, width], not normalised.
        """
        z, errors = self.try_images(images, projected=projected)
        if errors:
            shown = "; ".join(f"number {i}: {reason}" for i, reason in errors[:3])
            raise BadData(f"{len(errors)} of {len(z)} pictures cannot be read: {shown}")
        return z

    def try_images(self, images: Sequence[Picture] | Picture, *, projected: bool = True) -> tuple[Tensor, Errors]:
        """As `embed_images`, but broken pictures give rows of NaN and [(index, reason)]."""
        self._compares()
        sources = as_sources(images)
        if not sources:
            return torch.empty(0, self.dim if projected else self.vlm.image.width), []
        stage = "joint" if projected else "hidden"
        parts, errors = self.encoder.images(sources, stage)
        return parts["pooled" if projected else "hidden"], errors

    def caption(self, images: Sequence[Picture] | Picture, *, beams: int = 4) -> list[str]:
        """A text for each picture, by a model that was trained to write them (CoCa)."""
        said, errors = self.try_captions(images, beams=beams)
        if errors:
            raise BadData(f"{len(errors)} pictures cannot be read; number {errors[0][0]}: {errors[0][1]}")
        return [text for text in said if text is not None]

    def try_captions(self, images: Sequence[Picture] | Picture, *, beams: int = 4) -> tuple[list[str | None], Errors]:
        """As `caption`, but broken pictures give None and [(index, reason)]."""
        if not hasattr(self.vlm, "caption"):
            raise NoSuchDoor(
                f"{self.name} has no decoder, so it cannot write captions. Train one that can: "
                "emblema pretrain coca --data emblems --out RUN, then --model RUN/model"
            )
        return self.encoder.captions(as_sources(images), beams)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """[N, D] unit."""
        self._compares()
        return self.encoder.texts(checked_texts(texts))

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """The same from the cache, computed when they are not there: for many texts that are asked for again."""
        self._compares()
        texts = checked_texts(texts)
        return self.encoder.texts(texts) if self.cache is None else self.cache.texts(self.encoder, texts)

    def class_vectors(self, labels: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """A unit vector a class: each template's text normalised, averaged, normalised again. [C, D]"""
        labels = checked_labels(labels)
        checked_words(self.vlm.text, labels)
        templates = self.templates if templates is None else checked_templates(templates)
        z = self.text_features([fill(t, label) for label in labels for t in templates])
        mean = z.unflatten(0, (len(labels), len(templates))).mean(1)
        return torch.nn.functional.normalize(mean, dim=-1)

    @torch.inference_mode()
    def classify(
        self, images: Sequence[Picture] | Picture, labels: Sequence[str], templates: Sequence[str] | None = None
    ) -> Tensor:
        """Probability of each label among the given ones: [N, C], rows sum to 1."""
        return self.probabilities(self.embed_images(images), self.class_vectors(labels, templates))

    @torch.inference_mode()
    def probabilities(self, z_image: Tensor, z_text: Tensor) -> Tensor:
        """softmax over the texts of the scaled cosines: [N, D], [C, D] -> [N, C]"""
        return self.vlm.logits(z_image.to(self.device), z_text.to(self.device)).softmax(-1).cpu()

    def segment(
        self,
        images: Sequence[Picture] | Picture,
        labels: Sequence[str],
        templates: Sequence[str] | None = None,
        background: str = "prompts",
        **options: Any,
    ) -> list[Tensor]:
        """Which label each pixel shows: a map [H, W] a picture, numbers in `labels`, 255 for none of them.

        `background` says how a pixel becomes none of them, `options` how places are read: the fields of
        `engine.dense.ZeroShotSegmenter` ("features", "enlarge", "window", ...).
        """
        labels, segmenter = checked_labels(labels), ZeroShotSegmenter(**options)
        scores = segmenter.segment(self, as_pictures(images), labels, templates, background)
        return [label_map(s, len(labels)) for s in scores]

    def detect(
        self,
        images: Sequence[Picture] | Picture,
        labels: Sequence[str],
        templates: Sequence[str] | None = None,
        **options: Any,
    ) -> list[Boxes]:
        """What of the labels is where: `Boxes` a picture, in its pixels, with `labels` (numbers) and `scores`.

        `options` are the fields of `engine.regions.ZeroShotDetector` ("regions", "most_proposals", "floor", ...). A
        model that was trained to find things (GLIP) does it itself: options are those of `Grounder.detect`.
        """
        if self.finds:
            return self._found(as_pictures(images), checked_labels(labels), **options)
        return ZeroShotDetector(**options).detect(self, as_pictures(images), checked_labels(labels), templates)

    @property
    def finds(self) -> bool:
        """Whether the model has a detector of its own."""
        return hasattr(self.vlm, "detect")

    def _compares(self) -> None:
        if self.finds:
            raise NoSuchDoor(
                f"{self.name} finds things in pictures and was not trained to compare whole pictures with texts: use "
                "detect, or another model"
            )

    def _found(self, pictures: Sequence[Image.Image], labels: Sequence[str], **options: Any) -> list[Boxes]:
        wanted, found = replace(self.preprocess, mode="pad"), []  # as it was trained
        for start in range(0, len(pictures), self.encoder.batch_size):
            some = pictures[start : start + self.encoder.batch_size]
            pixels = torch.stack([load_image(picture, wanted) for picture in some]).to(self.device)
            for picture, boxes in zip(some, self.vlm.detect(pixels, labels, **options)):  # type: ignore[operator]
                width, height, left, top = geometry(picture.width, picture.height, wanted.size, wanted.mode)
                shrunk = torch.tensor([picture.width / width, picture.height / height] * 2)
                xyxy = (boxes.xyxy + torch.tensor([left, top] * 2)) * shrunk
                inside = xyxy.clamp(min=0).minimum(torch.tensor([picture.width, picture.height] * 2))
                found.append(replace(boxes, xyxy=inside))
        return found

    def features(self, data: Dataset, level: Level | str = Level.POOLED) -> Tensor:
        """Features of a data set from the cache, computed when they are not there: [N, ...]."""
        self._compares()
        name = {"hidden": "hidden", Level.PATCHES: "patches", Level.EMBEDDED: "tokens"}.get(level, "pooled")
        if self.cache is None:
            return Features.compute(self.encoder, data, level)[name]
        return self.cache.read(self.encoder, data, level)[name]

    def file_features(self, paths: Sequence[Path]) -> tuple[Tensor, Errors]:
        """As `try_images` of files, but from the cache where the same files were read before."""
        if self.cache is None:
            return self.try_images(paths)
        parts, errors = self.cache.files(self.encoder, paths)
        return parts["pooled"], errors


def as_pictures(images: Any) -> list[Image.Image]:
    """RGB pictures of whatever `as_sources` takes; transparency is laid over white."""
    return [flatten(open_picture(source), (255, 255, 255)) for source in as_sources(images)]


def as_sources(images: Any) -> list[Any]:
    """A list of what `emblema.data.pictures` opens; arrays become PIL images."""
    if isinstance(images, np.ndarray | Tensor):
        single = images.ndim == 2 or (images.ndim == 3 and images.shape[-1] in (1, 3, 4))
        images = [images] if single else list(images)
    elif isinstance(images, str | Path | bytes | Image.Image):
        images = [images]
    return [_as_source(image, i) for i, image in enumerate(images)]


def _as_source(image: Any, index: int) -> Any:
    if isinstance(image, Image.Image | bytes | Path):
        return image
    if isinstance(image, str):
        return Path(image)
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise BadData(
            f"picture number {index} is a {type(image).__name__}; give a path, bytes, a PIL image or an array [H, W, 3]"
        )
    return _from_array(image, index)


def _from_array(array: np.ndarray, index: int) -> Image.Image:
    expected = "expected [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]"
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        raise BadData(
            f"picture number {index} has shape {array.shape}, {expected}: channels come last. "
            "For a [C, H, W] array write array.transpose(1, 2, 0)"
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)) or 0 in array.shape:
        raise BadData(f"picture number {index} has shape {array.shape}, {expected}")
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise BadData(f"picture number {index} holds NaN or infinity: no picture has such pixels")
        if array.min() < 0 or array.max() > 1:
            raise BadData(
                f"picture number {index} is a float array from {array.min():.3g} to {array.max():.3g}, expected 0 to "
                "1. Divide by 255, or pass uint8; do not normalise, the model does"
            )
        array = np.rint(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise BadData(f"picture number {index} is an array of {array.dtype}, expected uint8, or float within 0..1")
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)


def checked_texts(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise BadData(f"texts must be a list of strings, got one string; write [{texts!r}]")
    texts = list(texts)
    wrong = next((t for t in texts if not isinstance(t, str)), None)
    if wrong is not None:
        raise BadData(f"texts must be strings, got {wrong!r} ({type(wrong).__name__})")
    return texts


def checked_labels(labels: Sequence[str]) -> list[str]:
    if isinstance(labels, str):
        raise BadData(f"labels must be a list of strings, got one string; write {labels.split(',')!r}")
    labels = [label.strip() for label in checked_texts(labels)]
    if not labels:
        raise BadData('no labels: give the words to choose from, e.g. ["cat", "dog"]')
    if "" in labels:
        raise BadData(f"label number {labels.index('')} is empty: remove it")
    twice = sorted({label for label in labels if labels.count(label) > 1}) if len(set(labels)) < len(labels) else []
    if twice:
        raise BadData(f"labels given twice: {', '.join(twice)}. The probability would be split between the copies")
    return labels


def checked_templates(templates: Sequence[str]) -> tuple[str, ...]:
    if isinstance(templates, str):
        templates = [templates]
    templates = tuple(templates)
    if not templates:
        raise BadData('no templates: give at least one, e.g. "a photo of a {}."')
    without = next((t for t in templates if "{}" not in t), None)
    if without is not None:
        raise BadData(f"template {without!r} has no place for the class name: write {{}} where it goes")
    return templates
