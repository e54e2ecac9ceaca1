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


def crop_vectors(
    model: Any, images: Sequence[Image.Image], given: Sequence[Boxes], scales: Sequence[float] = (1.0, 1.5)
) -> list[Tensor]:
    """Unit vectors [M, D] of each RGB picture's boxes: crops of each size, added. Kept where the model has a cache."""
    detector = ZeroShotDetector(crops=tuple(scales))
    if not model.cache:
        return detector.cropped(model, images, given)
    folder = model.cache.directory / "crops"
    about = f"{weights_id(model.vlm)}:{model.preprocess}:{model.precision}:{tuple(scales)}"
    paths = [folder / f"{_name(about, image, boxes)}.safetensors" for image, boxes in zip(images, given)]
    found = [_read(path) for path in paths]
    absent = [i for i, vectors in enumerate(found) if vectors is None]
    made = detector.cropped(model, [images[i] for i in absent], [given[i] for i in absent]) if absent else []
    for i, vectors in zip(absent, made):
        found[i] = vectors
        _write(paths[i], vectors)
    return found  # type: ignore[return-value]


def _name(about: str, image: Image.Image, boxes: Boxes) -> str:
    digest = hashlib.sha256(f"{about}:{image.size}:".encode())
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
