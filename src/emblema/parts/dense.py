"""A unit feature for each place of a batch of pictures, in the ways that a tower offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from emblema.core.errors import BadData

if TYPE_CHECKING:
    from emblema.frameworks.vlm import VLM

FEATURES = ("local", "values", "plain")


def checked_features(name: str) -> None:
    if name not in FEATURES:
        raise BadData(f"features {name!r}: choose {', '.join(FEATURES)}")


def enlarged(vlm: VLM, images: Tensor, times: float) -> Tensor:
    """uint8 [B, 3, H, W] -> squares of `times` the size that the tower was trained at, in whole patches."""
    tower: Any = vlm.image
    patch = getattr(getattr(tower, "config", None), "patch_size", 32)
    side = max(1, round(times * tower.image_size / patch)) * patch
    return F.interpolate(images, (side, side), mode="bicubic", antialias=True)


def places(vlm: VLM, images: Tensor, features: str = "local", times: float = 2.0, radius: int = 1) -> Tensor:
    """uint8 [B, 3, H, W] -> [B, h, w, D] unit.

    `features`: "local" pools each place with its neighbours, "values" is MaskCLIP's value path, "plain" the patch
    tokens.
    """
    checked_features(features)
    images = enlarged(vlm, images, times)
    if features == "local":
        return vlm.encode_local(images, radius)
    return vlm.encode_patches(images, values=features == "values")
