"""Vectors of pictures and of clips. A clip is sub-sampled, its frames are encoded, and their vectors are averaged."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from emblema.core.batch import Level, Record
from emblema.core.errors import BadData
from emblema.data.video import decode, is_video, middles
from emblema.engine.features import identity


def vectors(model: Any, data: Any, level: Level | str = Level.POOLED, frames: int = 8) -> Tensor:
    """[N, D] unit (or [N, width] of the level "hidden"), one row a picture or a clip, from the cache where it has them.

    The vectors of a clip's `frames` frames are averaged, and normalised again unless they are hidden features.
    """
    if not holds_clips(data):
        return model.features(data, level).float()
    z = model.features(Frames(data, frames), level).float().unflatten(0, (len(data), frames)).mean(1)
    return z if level == "hidden" else normalize(z, dim=-1)


def holds_clips(data: Any) -> bool:
    if not len(data):
        return False
    image = data[0].image
    return isinstance(image, list) or is_video(image)


class Frames(Sequence[Record]):
    """The frames of clips as a data set of pictures: `frames` records a clip, the middles of so many equal parts."""

    def __init__(self, data: Any, frames: int):
        if frames < 1:
            raise BadData(f"{frames} frames of a clip: take at least 1")
        self.data, self.card, self.class_names, self.frames = data, data.card, data.class_names, frames
        self._clip = lru_cache(64)(self._read)  # the encoder asks for a clip's frames one after the other

    def __len__(self) -> int:
        return len(self.data) * self.frames

    def __getitem__(self, index: Any) -> Any:
        clip, place = divmod(range(len(self))[index], self.frames)
        record, pictures = self._clip(clip)
        return replace(record, key=f"{record.key}#{place}", image=pictures[middles(len(pictures), self.frames)[place]])

    def _read(self, index: int) -> tuple[Record, list[Any]]:
        record: Record = self.data[index]
        image = record.image
        if is_video(image):
            return record, decode(image, self.frames)  # type: ignore[arg-type]
        pictures = list(image) if isinstance(image, list) else [image]
        if not pictures:
            raise BadData(f"{record.key} of {self.card.name} is a clip without frames: remove it")
        return record, pictures

    def identity(self) -> str:
        return hashlib.sha256(f"{identity(self.data)}:frames={self.frames}:middles".encode()).hexdigest()
