"""What a data set yields, what a method receives, and how deep a method reads an image."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from emblema.core.boxes import Boxes, Masks
from emblema.core.errors import ReadsTooShallow
from emblema.core.tokens import Tokens

if TYPE_CHECKING:
    from PIL.Image import Image

    from emblema.core.card import DatasetCard


class Level(IntEnum):
    """The deepest stage at which a method first touches the image; all before it is cached."""

    PIXELS = 0  # nothing is cached
    EMBEDDED = 1  # tokens before layer 0
    PATCHES = 2  # dense map and pooled vector
    POOLED = 3  # one vector an image


@dataclass(frozen=True, kw_only=True)
class Record:
    """One item of a data set, before collation."""

    key: str
    image: Image | Path | bytes | list[Any] | None = None  # a list is a clip: its frames in order
    text: str | None = None
    texts: tuple[str, ...] = ()  # further captions of the same image
    label: int | None = None
    labels: tuple[int, ...] = ()  # multi-label sets
    domain: str | None = None
    boxes: Boxes | None = None
    mask: Masks | None = None


class Dataset(Protocol):
    """A sequence of records with a card. `class_names[record.label]` names the class."""

    card: DatasetCard
    class_names: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class ImageInput:
    """An image batch as a method is allowed to see it; deeper stages raise a taught error."""

    def __init__(
        self,
        *,
        reads: Level = Level.PIXELS,
        reader: str = "the method",
        pixels: Tensor | None = None,  # [B, 3, H, W]
        tokens: Tokens | None = None,
        patches: Tensor | None = None,  # [B, H, W, D] unit
        values: Tensor | None = None,  # [B, H, W, D] unit, by the value path
        pooled: Tensor | None = None,  # [B, D] unit
        norm: Tensor | None = None,  # [B] of the joint feature before it was made a unit vector
    ):
        self.reads, self.reader = reads, reader
        stages = {"pixels": pixels, "tokens": tokens, "patches": patches, "values": values, "pooled": pooled}
        self._stages: dict[str, Any] = stages | {"norm": norm}

    def _stage(self, name: str) -> Any:
        value = self._stages[name]
        if value is None:
            raise ReadsTooShallow(self.reader, self.reads.name, name)
        return value

    @property
    def pixels(self) -> Tensor:
        return self._stage("pixels")

    @property
    def tokens(self) -> Tokens:
        return self._stage("tokens")

    @property
    def patches(self) -> Tensor:
        return self._stage("patches")

    @property
    def values(self) -> Tensor:
        return self._stage("values")

    @property
    def pooled(self) -> Tensor:
        return self._stage("pooled")

    @property
    def raw(self) -> Tensor:
        """The joint feature before it was made a unit vector: [B, D]."""
        return self._stage("pooled") * self._stage("norm")[:, None]

    def __len__(self) -> int:
        return next(len(v) for v in self._stages.values() if v is not None)


@dataclass
class Batch:
    """Collated records; what the data set does not have is None.

    `images` and `views` are uint8 [B, 3, H, W]; a tower normalises them with its own mean and std.
    """

    keys: list[str]
    images: Tensor | None = None  # [B, 3, H, W] uint8
    views: list[Tensor] = field(default_factory=list)  # each [B, 3, H, W] uint8
    texts: list[str] | None = None
    other_texts: list[list[str]] = field(default_factory=list)
    labels: Tensor | None = None  # [B] long, -1 where a record has none
    boxes: list[Boxes] | None = None
    masks: list[Masks] | None = None
    x: ImageInput | None = None
    targets: dict[str, Tensor] = field(default_factory=dict)
    progress: float = 0.0  # 0..1 through training
    generator: torch.Generator | None = None  # the step's own randomness

    def __len__(self) -> int:
        return len(self.keys)

    def noise(self, name: str, *shape: int) -> Tensor:
        """Uniform numbers for each sample: [B, *shape], a function of the step, the sample's key and `name` alone.

        So a chunk of the batch (gradient caching) sees the numbers that the whole batch would.
        """
        if self.generator is None:
            raise ValueError(f"the noise {name!r} needs batch.generator: Batch(..., generator=torch.Generator())")
        step = self.generator.initial_seed()
        return torch.stack([torch.rand(shape, generator=_stream(step, name, key)) for key in self.keys])

    def rows(self, start: int, stop: int) -> Batch:
        """The samples start..stop as a batch of their own (gradient caching)."""

        def cut(value):
            return value[start:stop] if isinstance(value, Tensor | list) else value

        return Batch(
            keys=self.keys[start:stop],
            images=cut(self.images),
            views=[cut(v) for v in self.views],
            texts=cut(self.texts),
            other_texts=[cut(t) for t in self.other_texts],
            labels=cut(self.labels),
            boxes=cut(self.boxes),
            masks=cut(self.masks),
            targets={k: cut(v) for k, v in self.targets.items()},
            progress=self.progress,
            generator=self.generator,
        )


def _stream(*place: int | str) -> torch.Generator:
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
