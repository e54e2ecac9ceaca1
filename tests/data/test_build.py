"""The builder of the bundled sets, and the promises that the bundled files keep."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

import emblema
from emblema.data.build import actions, build_all, icons, photos, raster, rcc, splits, tables, words
from emblema.data.build.classes import EXCLUDED, MERGED

BUNDLED = Path(emblema.__file__).parent / "data" / "bundled"
CARDS = json.loads((BUNDLED / "cards.json").read_text("utf-8"))["sets"]
SETS = sorted(CARDS)
VIEWS = [
    name
    for name in SETS
    if "image" not in CARDS[name]["columns"] and "key" in CARDS[name]["columns"] and name != "emblem-actions"
]


def rows(name: str, *columns: str) -> list[dict]:
    """Rows of a bundled set, some columns only."""
    return pq.read_table(BUNDLED / f"{name}.parquet", columns=list(columns) or None).to_pylist()


@pytest.fixture(scope="module")
def emblems() -> list[dict]:
    return rows("emblems", "key", "text", "texts", "family", "concept", "kind", "split", "novel", "source", "licence")


# --- the builder ---


def resource_file() -> bytes:
    """A Qt resource file, version 2, with `a/plain.txt` and a compressed `b.txt`."""
    names, offsets = b"", []
    for name in ("a", "plain.txt", "b.txt"):
        offsets.append(len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    packed = struct.pack(">I", 5) + zlib.compress(b"hello")
    content = struct.pack(">I", 3) + b"abc" + struct.pack(">I", len(packed)) + packed
    entry = [
        struct.pack(">IHIIQ", 0, 2, 2, 1, 0),
        struct.pack(">IHIIQ", offsets[0], 2, 1, 3, 0),
        struct.pack(">IHHHIQ", offsets[2], 1, 0, 0, 7, 0),
        struct.pack(">IHHHIQ", offsets[1], 0, 0, 0, 0, 0),
    ]
    at = 20
    head = b"qres" + struct.pack(">4I", 2, at, at + 88, at + 88 + len(content))
    return head + b"".join(entry) + content + names


def test_resource_file_is_read() -> None:
    assert dict(rcc.files(resource_file())) == {"a/plain.txt": b"abc", "b.txt": b"hello"}


def test_resource_file_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="qres"):
        list(rcc.files(b"PNG?"))


def test_captions_are_plain_words() -> None:
    assert words.caption("Cat_Face-02") == "cat face"
    assert words.caption("woman's hat (red)") == "womans hat red"
    assert words.caption("openMailbox.svg") == "open mailbox"
    assert words.caption("7") == "7"
    assert words.unique(["cat", "", "pet", "cat"], leave_out="pet") == ["cat"]


def test_splits_depend_on_their_arguments_only() -> None:
    assert splits.share("cat", "novel") == splits.share("cat", "novel") != splits.share("cat", "other")
    assert splits.emblem_split("openmoji", "openmoji/cat", "cat", "1f408") == "test"
    assert splits.emblem_split("icons", "x/1", "blue car", None) == splits.emblem_split("art", "y/2", "blue car", None)
    classes = [(f"{group}{i}", group) for group in "ab" for i in range(10)]
    novel = splits.novel_concepts(classes)
    assert novel == splits.novel_concepts(reversed(classes)) and len(novel) == 4
    assert {name[0] for name in novel} == {"a", "b"}


def test_brands_and_flags_are_known() -> None:
    assert icons.is_brand("logo-github-2") and not icons.is_brand("orange-cat")
    assert icons.flag_concept("at") == "1f1e6-1f1f9" and icons.flag_concept("us-ca") == ""


def test_photographs_have_one_label() -> None:
    assert photos.label_of("categorization/resource/images/tools/hammer3") == ("tools", "sledgehammer")
    assert photos.label_of("categorization/resource/images/tools/hammer4") == ("tools", "hammer")
    assert photos.label_of("lang/resource/words_sample/bear") is None


def test_licences_beside_photographs_are_read() -> None:
    text = "Copyright: A. Person\nLicense: CC-BY-SA 4.0\n"
    text += "Files:\ncat.webp\ndog.webp\n\nCopyright: B\nFiles: x.webp"
    assert list(photos.read_rights(text)) == [(["cat.webp", "dog.webp"], "CC-BY-SA-4.0", "A. Person")]


def test_animation_files_are_read_and_layers_composed() -> None:
    text = "image=a.png\n[run]\nframes=2\nduration=200ms\nframe=0,0,0,0,2,2,1,2\nframe=1,0,2,0,2,2,0,2\n"
    sheet, found = actions.read_animation(text)
    frames, ms = actions.compose([(Image.new("RGBA", (4, 2), "red"), found)], "run", 0)
    assert sheet == "a.png" and ms == 100 and [f.size for f in frames] == [(3, 2), (3, 2)]
    assert frames[0].getpixel((2, 0)) == (0, 0, 0, 0) and frames[1].getpixel((2, 0)) == (255, 0, 0, 255)


def test_parquet_is_written_the_same_twice(tmp_path: Path) -> None:
    items = [{"key": k, "texts": [k, "x"], "image": k.encode()} for k in "bca"]
    for name in ("one", "two"):
        tables.write(tmp_path / name, items, ("key", "image", "texts"))
        items.reverse()
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert pq.read_table(tmp_path / "one")["key"].to_pylist() == ["a", "b", "c"]


def test_unknown_step_teaches(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="photos"):
        build_all(tmp_path, only="foto")


def test_blank_and_cropped_pictures() -> None:
    picture = Image.new("RGBA", (100, 100))
    assert raster.is_blank(picture) and raster.draw(_png(picture)) is None
    picture.paste((255, 0, 0, 255), (40, 40, 50, 50))
    drawn = raster.draw(_png(picture), cropped=True)
    assert drawn is not None and Image.open(io.BytesIO(drawn[0])).size == (64, 64)


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@pytest.mark.slow
def test_svg_is_drawn() -> None:
    box = '<rect width="8" height="4" fill="#00f"/>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 4">{box}</svg>'
    drawn = raster.draw(svg)
    assert drawn is not None and drawn == raster.draw(svg)
    picture = Image.open(io.BytesIO(drawn[0])).convert("RGBA")
    red, green, blue, alpha = picture.getpixel((32, 16))
    assert picture.size == (64, 32) and blue > 200 and red < 40 and green < 40 and alpha == 255


# --- the bundled files ---


@pytest.mark.parametrize("name", SETS)
def test_card_belongs_to_its_file(name: str) -> None:
    data = (BUNDLED / f"{name}.parquet").read_bytes()
    assert hashlib.sha256(data).hexdigest() == CARDS[name]["sha256"] and len(data) == CARDS[name]["bytes"]
    assert CARDS[name]["licences"] and CARDS[name]["sources"] and CARDS[name]["splits"]


def test_every_file_has_a_card_and_all_fit() -> None:
    assert sorted(p.stem for p in BUNDLED.glob("*.parquet")) == SETS
    assert sum(p.stat().st_size for p in BUNDLED.iterdir()) <= 45_000_000


def test_emblems_have_words_and_rights(emblems: list[dict]) -> None:
    assert len({r["key"] for r in emblems}) == len(emblems) > 25_000
    assert all(r["text"].strip() and r["source"] and r["family"] and r["licence"] for r in emblems)
    assert not [r["text"] for r in emblems if "_" in r["text"] or r["text"] != r["text"].lower()]
    assert not any("NC" in r["licence"] or "GPL" in r["licence"] for r in emblems)


def test_held_out_families_are_never_trained_on(emblems: list[dict]) -> None:
    held_out = [r for r in emblems if r["family"] in splits.HELD_OUT_FAMILIES]
    assert len(held_out) > 5_000 and {r["split"] for r in held_out} == {"test"}
    others = [r for r in emblems if r["split"] == "test" and r["family"] not in splits.HELD_OUT_FAMILIES]
    assert len(others) >= 1_000
    assert {r["split"] for r in rows("emblem-photos", "split")} == {"test"}


def test_captions_of_icons_and_clipart_stand_on_one_side(emblems: list[dict]) -> None:
    sides: dict[str, set[str]] = {}
    for r in emblems:
        if r["kind"] != "emoji" and r["concept"] is None:
            sides.setdefault(r["text"], set()).add(r["split"])
    assert not [text for text, found in sides.items() if "test" in found and len(found) > 1]


def test_novel_concepts_are_novel_in_every_family(emblems: list[dict]) -> None:
    objects = rows("emblem-objects")
    of: dict[str, set[bool]] = {}
    for r in objects:
        of.setdefault(r["concept"], set()).add(r["novel"])
    assert all(len(found) == 1 for found in of.values())
    marks = {r["key"]: r["novel"] for r in emblems}
    assert all(marks[r["key"]] == r["novel"] for r in objects)
    assert 0.15 < sum(True in found for found in of.values()) / len(of) < 0.25


def test_every_class_has_one_concept_and_no_excluded_name() -> None:
    pairs = {(r["label"], r["concept"]) for r in rows("emblem-objects")}
    assert len(pairs) == len({label for label, _ in pairs}) == len({concept for _, concept in pairs})
    assert not {label for label, _ in pairs} & (set(EXCLUDED) - set(MERGED))


@pytest.mark.parametrize("name", VIEWS)
def test_views_refer_to_emblems(name: str, emblems: list[dict]) -> None:
    families = {r["key"]: r["family"] for r in emblems}
    view = rows(name)
    assert view and len({r["key"] for r in view}) == len(view)
    assert all(families.get(r["key"]) == r["family"] for r in view)
    assert all((r["family"] in splits.HELD_OUT_FAMILIES) == (r["split"] == "test") for r in view)


@pytest.mark.parametrize("name", ["emblem-silhouettes", "digits", "fashion", "emblem-photos", "backgrounds"])
def test_own_pictures_open(name: str) -> None:
    found = rows(name)
    assert all(r["source"] and r["licence"] for r in found)
    assert min(Image.open(io.BytesIO(r["image"])).size[0] for r in found[::50]) >= 8


def test_clips_hold_frames_of_one_size() -> None:
    for r in rows("emblem-actions")[::97]:
        sizes = {Image.open(io.BytesIO(f)).size for f in r["frames"]}
        assert len(sizes) == 1 and max(max(s) for s in sizes) <= actions.SIDE and r["frame_ms"] > 0
    kinds = {(r["kind"] == "human") == (r["split"] == "test") for r in rows("emblem-actions", "kind", "split")}
    assert kinds == {True}


def test_templates_have_one_gap() -> None:
    templates = json.loads((BUNDLED / "templates.json").read_text("utf-8"))
    assert set(templates) <= set(SETS)
    assert all(len(found) >= 7 and all(t.count("{}") == 1 for t in found) for found in templates.values())
