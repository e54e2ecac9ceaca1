"""A teacher's vectors of boxes, kept on disk: a crop costs a pass of the image tower, and distillations ask again.

A picture's file is named by its pixels, its boxes, the crop sizes, the weights and the preprocessing, so what is found
was made of exactly these. A file that cannot be read is made again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from emblema.core.boxes import Boxes
from emblema.engine.features import weights_id
from emblema.engine.regions import ZeroShotDetector


class CropVectors:
    """Unit vectors [M, D] of each RGB picture's boxes: crops of each size, added. Kept where the model has a cache.

    The weights are hashed once: make another for another model.
    """

    def __init__(self, model: Any, scales: Sequence[float] = (1.0, 1.5)):
        self.model, self.detector = model, ZeroShotDetector(crops=tuple(scales))
        self.folder = model.cache.directory / "crops" if model.cache else None
        about = (model.preprocess, model.precision, self.detector.crops)
        self.about = f"{weights_id(model.vlm.image)}:{about}" if self.folder else ""

    def __call__(self, images: Sequence[Image.Image], given: Sequence[Boxes]) -> list[Tensor]:
        if self.folder is None:
            return self.detector.cropped(self.model, images, given)
        paths = [self.folder / f"{self._name(*one)}.safetensors" for one in zip(images, given)]
        found = [_read(path) for path in paths]
        absent = [i for i, vectors in enumerate(found) if vectors is None]
        if absent:
            made = self.detector.cropped(self.model, [images[i] for i in absent], [given[i] for i in absent])
            for i, vectors in zip(absent, made):
                found[i] = vectors
                _write(paths[i], vectors)
        return found  # type: ignore[return-value]

    def _name(self, image: Image.Image, boxes: Boxes) -> str:
        digest = hashlib.sha256(f"{self.about}:{image.size}:".encode())
        digest.update(image.tobytes())
        digest.update(boxes.xyxy.float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]


def _read(path: Path) -> Tensor | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)["vectors"]
    except (FileNotFoundError, SafetensorError, KeyError):
        return None


def _write(path: Path, vectors: Tensor) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    save_file({"vectors": vectors.contiguous().clone()}, part)
    part.replace(path)
