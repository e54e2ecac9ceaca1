"""Clips as columns: lists of frames, evenly spaced over the clip, from video files or from folders of frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from emblema.core.errors import BadData
from emblema.data.catalog import PICTURES

VIDEOS = (".avi", ".mp4", ".mkv", ".webm", ".mov", ".mpg", ".mpeg")
FRAMES = 8


def middles(count: int, frames: int) -> list[int]:
    """The middle of each of `frames` equal parts of `count` frames; all of them when there are fewer."""
    if count <= frames:
        return list(range(count))
    return ((np.arange(frames) + 0.5) * count / frames).astype(int).tolist()


class FrameFolders(Sequence):
    """Folders of numbered frames, as lists of `frames` paths."""

    def __init__(self, folders: Sequence[Path], frames: int = FRAMES):
        self.folders, self.frames = list(folders), frames

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, row):
        files = sorted(f for f in self.folders[row].iterdir() if f.suffix.lower() in PICTURES)
        return [files[i] for i in middles(len(files), self.frames)]


class Videos(Sequence):
    """Video files, decoded to lists of `frames` pictures when they are asked for (extra: video)."""

    def __init__(self, files: Sequence[Path], frames: int = FRAMES):
        self.files, self.frames = list(files), frames

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row):
        return decode(self.files[row], self.frames)


def decode(file: Path, frames: int = FRAMES) -> list[Image.Image]:
    """`frames` RGB pictures of a video, evenly spaced. Raises `BadData` when it cannot be decoded."""
    try:
        import av
        from av.error import FFmpegError
    except ImportError:
        raise BadData(f"{file} is a video: install PyAV to read it (pip install 'emblema[video]')") from None
    try:
        with av.open(str(file)) as video:
            count = sum(packet.size > 0 for packet in video.demux(video=0))
        with av.open(str(file)) as video:
            wanted = set(middles(count, frames))
            return [f.to_image() for i, f in enumerate(video.decode(video=0)) if i in wanted]
    except (FFmpegError, IndexError) as error:
        raise BadData(f"{file} cannot be decoded as a video: {error}") from None
