"""RareAct: `rareact.csv` (a row a clip: video, seconds, verb, noun, annotation) and a folder of videos by YouTube id.

Source: Miech et al., 2020 (arXiv 2008.01018). A row asks about one (verb, noun): 1 it is shown, 2 only the verb is,
3 only the noun is, 4 both are but not together, 0 neither. The label is what is asked about, not what is seen:
`evaluate rare-action` knows the difference. Extra: video (PyAV).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emblema.core.errors import BadData
from emblema.data.catalog import VIDEOS
from emblema.data.datasets import Skip
from emblema.data.layouts import Found, Needs, Place
from emblema.data.layouts.clips import Stretch, Videos

TABLE, FOLDER = "rareact.csv", "rareact|videos|RareAct_videos"
COLUMNS = {"id", "video_id", "start", "end", "class_id", "verb", "noun", "annotation"}


def needs() -> Needs:
    return {"": (TABLE, FOLDER)}


def read(place: Place) -> Found:
    path = place.path(TABLE)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if lacking := COLUMNS - set(rows[0] if rows else ()):
        raise BadData(
            f"{path} lacks the columns {', '.join(sorted(lacking))}; it has {', '.join(rows[0] if rows else ())}"
        )
    actions = {int(row["class_id"]): (row["verb"], row["noun"]) for row in rows}
    if gap := next((i for i in range(len(actions)) if i not in actions), None):
        raise BadData(f"{path} has {len(actions)} actions, but none of them is number {gap}")
    films = {f.stem: f for f in sorted(place.path(FOLDER).iterdir()) if f.suffix.lower() in VIDEOS}

    def items() -> Iterator[dict[str, Any] | Skip]:
        for row in rows if place.wants("test") else ():
            film = films.get(row["video_id"])
            if film is None:
                where = Path(place.path(FOLDER)) / f"{row['video_id']}.mp4"
                yield Skip(row["id"], "missing file", f"no video {where} (or with another ending of a video)")
                continue
            yield {
                "key": row["id"], "image": Stretch(film, float(row["start"]), float(row["end"])),
                "label": int(row["class_id"]), "annotation": int(row["annotation"]), "video": row["video_id"],
                "split": "test",
            }  # fmt: skip

    return Found(items(), [" ".join(actions[i]) for i in range(len(actions))], {"image": Videos})
