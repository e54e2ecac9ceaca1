"""Clips: video files, folders of numbered frames, and lists of frames, all as lists of pictures in order."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from PIL import Image

from emblema.core.errors import BadData
from emblema.data.catalog import VIDEOS
from emblema.data.datasets import SPLITS, Records


def is_video(source: Any) -> bool:
    return isinstance(source, str | Path) and Path(source).suffix.lower() in VIDEOS


def middles(count: int, frames: int) -> list[int]:
    """The middle of each of `frames` equal parts of `count` frames: a short clip gives some of them more than once."""
    return [(2 * i + 1) * count // (2 * frames) for i in range(frames)]


def decode(file: Path | str, frames: int, start: float = 0.0, end: float = math.inf) -> list[Image.Image]:
    """`frames` RGB pictures of a video, evenly spaced between two seconds of it (extra: video).

    Raises `BadData` when it cannot be decoded, or holds nothing between them.
    """
    try:
        import av
        from av.error import FFmpegError
    except ImportError:
        raise BadData(f"{file} is a video: install PyAV to read it (pip install 'emblema[video]')") from None
    if not Path(file).is_file():
        raise BadData(f"no video file {file}")
    try:
        with av.open(str(file)) as video:  # containers lie about their length, so packets are counted
            packets = [p for p in video.demux(video=0) if p.size]
        within = range(len(packets))
        if start > 0 or end < math.inf:
            times = sorted(float(p.pts * p.time_base) for p in packets if p.pts is not None)
            within = [i for i, t in enumerate(times) if start <= t - times[0] < end]
        wanted, found = [within[i] for i in middles(len(within), frames)] if within else [], {}
        with av.open(str(file)) as video:
            for i, frame in enumerate(video.decode(video=0)):
                if i in wanted:
                    found[i] = frame.to_image()
                if wanted and i >= wanted[-1]:
                    break
    except (FFmpegError, IndexError, ValueError) as error:
        raise BadData(f"{file} cannot be decoded as a video: {error}") from None
    if not found:
        between = "" if end == math.inf else f" between {start:g} and {end:g} s"
        raise BadData(f"{file} holds no frame that can be decoded{between}")
    return [found.get(i) or found[max(found)] for i in wanted]


def by_folder(records: Records) -> Records:
    """Pictures in `class/clip/frame.jpg` (below a split or not) as clips: one record a folder, its frames in order.

    Other records come back as they are.
    """
    images = records.columns.get("image")
    if images is None or not len(records) or not isinstance(images, list) or not isinstance(images[0], Path):
        return records
    places = [tuple(Path(key).parts) for key in records.keys]
    if not all(len(p) - (p[0].lower() in SPLITS) >= 3 for p in places):
        return records
    rows: dict[tuple[str, ...], list[int]] = {}
    for row, place in zip(records.index.tolist(), places):
        rows.setdefault(place[:-1], []).append(row)
    first = [members[0] for members in rows.values()]
    clips = [sorted((images[i] for i in members), key=_counted) for members in rows.values()]
    columns = {name: [values[i] for i in first] for name, values in records.columns.items()}
    columns |= {"key": ["/".join(place) for place in rows], "image": clips}
    return Records(records.card, columns, records.class_names, records.report)


def _counted(path: Path) -> list[Any]:
    """Names in the order of the numbers in them: frame 9 before frame 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]
