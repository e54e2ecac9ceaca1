"""Clips as columns: lists of frames, evenly spaced over the clip, from video files or from folders of frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emblema.data import video
from emblema.data.catalog import PICTURES, VIDEOS

__all__ = ["FRAMES", "VIDEOS", "FrameFolders", "Stretch", "Videos"]

FRAMES = 8


class FrameFolders(Sequence):
    """Folders of numbered frames, as lists of `frames` paths."""

    def __init__(self, folders: Sequence[Path], frames: int = FRAMES):
        self.folders, self.frames = list(folders), frames

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, row):
        files = sorted(f for f in self.folders[row].iterdir() if f.suffix.lower() in PICTURES)
        return [files[i] for i in dict.fromkeys(video.middles(len(files), self.frames))]


class Videos(Sequence):
    """Video files, or stretches of them, decoded to lists of `frames` pictures when asked for (extra: video)."""

    def __init__(self, files: Sequence[Path | Stretch], frames: int = FRAMES):
        self.files, self.frames = list(files), frames

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row):
        one = self.files[row]
        one = one if isinstance(one, Stretch) else Stretch(one)
        return video.decode(one.file, self.frames, one.start, one.end)


@dataclass(frozen=True)
class Stretch:
    """A part of a video, in seconds."""

    file: Path
    start: float = 0.0
    end: float = math.inf
