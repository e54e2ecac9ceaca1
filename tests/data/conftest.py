"""A tiny folder of bundled sets, and pictures to write."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from emblema.data.scenes import CATEGORIES


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def sticker(colour, corner=0, shape="ellipse"):
    """An RGBA picture of one shape on nothing."""
    image = Image.new("RGBA", (64, 64))
    getattr(ImageDraw.Draw(image), shape)((4 + corner, 10, 59, 55 - corner), fill=(*colour, 255))
    return encoded(image, "WEBP", lossless=True)


def noise(seed=0, size=(24, 24)):
    """An opaque RGB picture like no other."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """emblems, emblem-objects, emblem-photos, emblem-actions, backgrounds, cards.json and templates.json."""
    folder = tmp_path_factory.mktemp("bundled")
    base, novel = CATEGORIES["small"]
    colours = np.random.default_rng(0).integers(0, 255, (12, 3)).tolist()
    emblems, objects = [], []
    for c, name in enumerate((*base, *novel)):
        for f, (family, split) in enumerate((("noto", "train"), ("twemoji", "train"), ("openmoji", "test"))):
            row = {"key": f"{family}/{name}", "family": family, "split": split, "novel": name in novel, "concept": name}
            picture = sticker([(v + 9 * f) % 256 for v in colours[c]], c % 5 * 3 + f, ("ellipse", "rectangle")[c % 2])
            emblems.append(row | {"image": picture, "text": name, "texts": [f"one {name}"], "kind": "emoji"})
            objects.append({**row, "label": name, "group": "objects"})
    write = lambda name, rows: pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet", row_group_size=7)
    write("emblems", emblems)
    write("emblem-objects", objects)
    shot = lambda i: encoded(noise(i, (128, 128)).resize((128, 128)), "WEBP")
    write("backgrounds", [{"key": f"b{i}", "image": shot(i), "split": ("train", "test")[i > 2]} for i in range(5)])
    write("emblem-photos", [{"key": "p", "image": shot(9), "text": "a", "label": "x", "split": "test"}])
    clips = [
        {"key": f"{actor}/{action}", "frames": [sticker((200, 9, 9), i * 4) for i in range(3)], "action": action,
         "actor": actor, "kind": kind, "split": split, "novel": action == "dying"}
        for actor, kind, split in (("goblin", "creature", "train"), ("man", "human", "test"))
        for action in ("running", "dying")
    ]  # fmt: skip
    write("emblem-actions", clips)
    sets = {n: {"title": n.title(), "licences": {"MIT": 1}} for n in ("emblems", "emblem-objects", "backgrounds")}
    sets["emblem-photos"] = {"evaluation_only": True, "split_rows": {"test": 1}}
    sets["emblem-actions"] = {"classes": {"running": {}, "dying": {}}}
    (folder / "cards.json").write_text(json.dumps({"sets": sets}))
    (folder / "templates.json").write_text(json.dumps({"emblems": ["a drawing of a {}.", "{}."]}))
    return folder
