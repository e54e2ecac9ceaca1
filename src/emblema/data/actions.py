"""Clips of figures: frames laid over a plain background, on a square that holds the largest of them."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from emblema.data.datasets import Records
from emblema.data.pictures import Source, flatten, open_picture


class Composited(Sequence):
    """A column of clips: lists of RGB frames of one square size, made from RGBA frames when they are asked for."""

    def __init__(self, clips: Sequence[Sequence[Source]], background: tuple[int, int, int]):
        self.clips, self.background = clips, background

    def __len__(self) -> int:
        return len(self.clips)

    def only(self, rows) -> Composited:
        return Composited([self.clips[int(i)] for i in rows], self.background)

    def __getitem__(self, row):
        return composite(self.clips[row], self.background)


def composite(frames: Sequence[Source], background: tuple[int, int, int] = (255, 255, 255)) -> list[Image.Image]:
    """RGB frames: all centred on one square, standing on the same ground, so that only the figure moves."""
    opened = [open_picture(f) for f in frames]
    side = max((max(f.size) for f in opened), default=1)
    out = []
    for frame in opened:
        square = Image.new("RGB", (side, side), background)
        square.paste(flatten(frame, background), ((side - frame.width) // 2, side - frame.height))
        out.append(square)
    return out


def as_clips(records: Records, background: tuple[int, int, int] = (255, 255, 255)) -> Records:
    """Records of `emblem-actions` whose pictures are composited clips; `domain` tells creatures from humans."""
    columns = {**records.columns, "image": Composited(records.columns["image"], background)}
    columns["domain"] = records.columns["kind"]
    return Records(records.card, columns, records.class_names, records.report, records.index)
