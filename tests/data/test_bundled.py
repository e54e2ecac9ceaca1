"""Bundled sets: parquet with pictures, and views that borrow them."""

import io
import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from emblema.core.errors import BadData, UnknownName
from emblema.data.bundled import read_bundled
from emblema.data.datasets import trainable
from emblema.data.pictures import open_picture


def webp(colour):
    file = io.BytesIO()
    Image.new("RGBA", (8, 8), colour).save(file, "WEBP", lossless=True)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    rows = [
        {"key": f"{family}/{concept}", "image": webp((i * 20, j * 90, 0, 255)), "text": concept,
         "texts": ["a " + concept], "family": family, "concept": concept, "split": split, "novel": concept == "dog"}
        for i, concept in enumerate(("cat", "dog", "bus"))
        for j, (family, split) in enumerate((("noto", "train"), ("openmoji", "test")))
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "emblems.parquet", row_group_size=2)
    view = [{"key": r["key"], "label": r["concept"], "family": r["family"], "split": r["split"], "novel": r["novel"]}
            for r in reversed(rows)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(view), tmp_path / "emblem-objects.parquet")
    photos = [{"key": "p", "image": webp((9, 9, 9, 255)), "text": "a", "label": "x", "split": "test"}]
    pq.write_table(pa.Table.from_pylist(photos), tmp_path / "emblem-photos.parquet")
    cards = {"sets": {"emblem-photos": {"evaluation_only": True, "title": "Photographs", "licences": {"CC0-1.0": 1}}}}
    (tmp_path / "cards.json").write_text(json.dumps(cards))
    return tmp_path


def test_records_and_pictures(folder):
    emblems = read_bundled("emblems", folder)
    assert len(emblems) == 6 and emblems.card.sizes == {"train": 3, "test": 3}
    record = emblems[3]
    assert (record.key, record.text, record.texts, record.domain) == ("openmoji/dog", "dog", ("a dog",), "openmoji")
    assert open_picture(record.image).getpixel((0, 0)) == (20, 90, 0)
    assert [r.key for r in emblems.split("test")] == ["openmoji/cat", "openmoji/dog", "openmoji/bus"]


def test_a_view_borrows_pictures_and_counts_its_classes(folder):
    objects = read_bundled("emblem-objects", folder)
    emblems = {r.key: r for r in read_bundled("emblems", folder)}
    assert objects.class_names == ["bus", "cat", "dog"]
    assert all(r.image == emblems[r.key].image for r in objects)
    assert [objects.class_names[r.label] for r in objects] == [k.split("/")[1] for k in objects.keys]
    assert objects.base_classes() == ["bus", "cat"] and objects.novel_classes() == ["dog"]
    novel = objects.only_classes(objects.novel_classes())
    assert novel.class_names == ["dog"] and novel.labels == [0, 0] and novel[0].label == 0
    again = objects.only_classes(["cat", "bus"]).only_classes(["bus"])
    assert again.labels == [0, 0] and {k.split("/")[1] for k in again.keys} == {"bus"}


def test_views_compose_and_cross_processes(folder):
    objects = read_bundled("emblem-objects", folder)
    some = pickle.loads(pickle.dumps(objects.split("train").where(novel=False).subset([1])))
    assert len(some) == 1 and some[0].key == "noto/cat" and some[0].image == objects.where(novel=False)[3].image
    with pytest.raises(UnknownName, match="novel"):
        objects.where(novl=True)
    with pytest.raises(IndexError):
        some[1]


def test_evaluation_data_never_comes_out_as_training_data(folder):
    photos = read_bundled("emblem-photos", folder)
    assert (photos.card.title, photos.card.licence, photos.card.trainable) == ("Photographs", "CC0-1.0", False)
    with pytest.raises(BadData, match="evaluation only"):
        photos.split("train")
    with pytest.raises(BadData, match="evaluation only"):
        trainable(photos.split("test"))
    emblems = read_bundled("emblems", folder)
    with pytest.raises(BadData, match="3 of these 6"):
        trainable(emblems)
    assert set(trainable(emblems.split("train")).column("split")) == {"train"}
    with pytest.raises(BadData, match="no split 'tset'"):
        emblems.split("tset")


def test_a_view_of_missing_pictures_is_refused(folder):
    pq.write_table(pa.table({"key": ["gone"], "label": ["x"], "split": ["train"]}), folder / "emblem-food.parquet")
    with pytest.raises(BadData, match="gone"):
        read_bundled("emblem-food", folder)
    (folder / "emblem-flags.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(BadData, match="truncated"):
        read_bundled("emblem-flags", folder)
