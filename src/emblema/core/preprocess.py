"""How a model wants its pictures: travels with a checkpoint, carried out by `emblema.data.pictures`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Resizing before a tower sees uint8 pixels; the mean and std are the image tower's own."""

    size: int  # pixels, square
    mode: str = "crop"  # "crop": short side to `size`, centre crop; "squash": both sides; "pad": long side, padded
    interpolation: str = "bicubic"  # or "bilinear"
    background: tuple[int, int, int] = (255, 255, 255)  # behind transparent pictures and in padding

    def __post_init__(self) -> None:
        if self.mode not in ("crop", "squash", "pad") or self.interpolation not in ("bicubic", "bilinear"):
            raise ValueError(f"unknown preprocessing {self}: mode is crop, squash or pad; bicubic or bilinear")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Preprocess:
        return cls(**{**data, "background": tuple(data.get("background", (255, 255, 255)))})
