"""Readers by layout, each with the odd and the broken."""

import io
import json
import pickle
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from emblema.core.errors import BadData, UnknownName
from emblema.data.catalog import expand, load, read_path, sniff
from emblema.data.pictures import open_picture
from emblema.data.shards import read_shards

from .conftest import encoded, noise


def put(path, content=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(noise(len(str(path))), "JPEG") if content is None else content)


def kinds(records):
    return records.report.counts()


def test_image_folder(tmp_path):
    for name in ("cat/1.jpg", "cat/2.JPG", "dog/deep/3.png", ".hidden/4.jpg", "dog/._5.jpg"):
        put(tmp_path / name)
    put(tmp_path / "dog" / "empty.jpg", b"")
    put(tmp_path / "stray.jpg")
    assert sniff(tmp_path)[0] == "image-folder"
    records = load(tmp_path)
    assert records.class_names == ["cat", "dog"] and records.labels == [0, 0, 1]
    assert records.keys == ["cat/1.jpg", "cat/2.JPG", "dog/deep/3.png"] and open_picture(records[2].image).size
    assert kinds(records) == {"zero bytes": 1, "no class": 1}
    with pytest.raises(BadData, match="2 items left out"):
        load(tmp_path, on_broken="refuse")
    records.report.write(tmp_path / "left-out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "left-out.jsonl").read_text().splitlines()]
    assert {line["key"] for line in lines} == {"dog/empty.jpg", "stray.jpg"} and lines[0].keys() >= {"kind", "reason"}


def test_image_folder_with_splits_and_names(tmp_path):
    for name in ("train/n02123045/1.jpg", "validation/n02123045/2.jpg", "test/n02084071/3.jpg"):
        put(tmp_path / name)
    assert load(tmp_path).class_names == ["n02084071", "n02123045"]
    (tmp_path / "classnames.txt").write_text("dog\ntabby cat\n")
    assert load(tmp_path).splits == {"train": 1, "val": 1, "test": 1}
    assert [load(tmp_path).class_names[r.label] for r in load(tmp_path, "test")] == ["dog"]
    (tmp_path / "classnames.txt").write_text("dog\n")
    with pytest.raises(BadData, match="1 distinct names for 2"):
        load(tmp_path)


def test_a_flat_folder_has_no_labels(tmp_path):
    put(tmp_path / "a.jpg")
    put(tmp_path / "b.webp")
    records = load(tmp_path)
    assert len(records) == 2 and records.class_names == [] and records[0].label is None


def test_unreadable_folders_say_what_was_found(tmp_path):
    with pytest.raises(BadData, match=r"found: nothing.*Readable layouts"):
        load(tmp_path)
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(BadData, match=r"1 \.docx"):
        load(tmp_path)
    with pytest.raises(UnknownName, match="no data set or path"):
        load(tmp_path / "nowhere")
    put(tmp_path / "b.tar.gz", b"x")
    with pytest.raises(BadData, match="unpack it first"):
        load(tmp_path / "b.tar.gz")


def test_broken_pictures_are_found_beforehand_on_request(tmp_path):
    put(tmp_path / "a" / "good.jpg")
    put(tmp_path / "a" / "cut.jpg", encoded(noise(), "JPEG")[:200])
    put(tmp_path / "b" / "page.jpg", b"<html>")
    assert len(load(tmp_path)) == 3
    records = load(tmp_path, verify=True)
    assert records.keys == ["a/good.jpg"] and kinds(records) == {"broken picture": 2}
    with pytest.raises(BadData, match="2 broken picture"):
        load(tmp_path, verify=True, on_broken="refuse")


def test_sidecars(tmp_path):
    captions = {"1": b"a cat\nthe same cat\n", "2": b"", "3": b"caf\xe9", "4": "\ufeffun café".encode(), "5": None}
    for name, caption in captions.items():
        put(tmp_path / f"{name}.jpg")
        if caption is not None:
            put(tmp_path / f"{name}.txt", caption)
    put(tmp_path / "6.jpg")
    put(tmp_path / "6.json", b'{"caption": "from json", "url": "x"}')
    put(tmp_path / "7.jpg", b"")
    records = load(tmp_path)
    assert [(r.text, r.texts) for r in records] == [("a cat", ("the same cat",)), ("un café", ()), ("from json", ())]
    assert kinds(records) == {"empty caption": 1, "not UTF-8": 1, "missing caption": 1, "zero bytes": 1}


def test_csv_with_everything_wrong(tmp_path):
    for name in ("a.jpg", "b.jpg", "ü.jpg"):
        put(tmp_path / "pics" / name)
    put(tmp_path / "pics" / "empty.jpg", b"")
    rows = [
        b"filepath,title,split",
        b"pics/a.jpg,a cat,train",
        b'pics/b.jpg,"a dog, sitting",test',
        b"pics/a.jpg,the cat again,train",
        b"pics/none.jpg,gone,train",
        b"pics/empty.jpg,nothing,train",
        b"pics/b.jpg,  ,train",
        b"pics/b.jpg,caf\xe9,train",
        "pics/ü.jpg,ein Bild,train".encode(),
        b"pics/b.jpg,too,many,fields",
        b",no picture,train",
        b"http://x.y/z.jpg,far away,train",
    ]
    put(tmp_path / "pairs.csv", b"\n".join(rows))
    records = load(tmp_path / "pairs.csv")
    assert records.keys == ["pics/a.jpg", "pics/b.jpg", "pics/a.jpg#2", "pics/ü.jpg"]
    assert records[1].text == "a dog, sitting" and records.splits == {"train": 3, "test": 1}
    assert kinds(records) == {
        "missing file": 2, "zero bytes": 1, "empty caption": 1, "not UTF-8": 1, "broken row": 1, "web address": 1,
    }  # fmt: skip
    assert "pairs.csv:5" in [s.key for s in records.report.skips]
    assert sniff(tmp_path) == ("table", [tmp_path / "pairs.csv"])


@pytest.mark.parametrize("name", ["x.tsv", "x.csv"])
def test_tabs_and_a_byte_order_mark(tmp_path, name):
    put(tmp_path / "a.jpg")
    put(tmp_path / name, "\ufeffimage\tlabel\na.jpg\tcat\na.jpg\tdog\n".encode())
    records = load(tmp_path / name)
    assert records.class_names == ["cat", "dog"] and records.labels == [0, 1]


def test_tables_without_pictures(tmp_path):
    put(tmp_path / "x.csv", b"name,title\na,b\n")
    with pytest.raises(BadData, match="no column of pictures"):
        load(tmp_path / "x.csv")
    put(tmp_path / "x.csv", b"url,caption\nhttp://a,b\n")
    with pytest.raises(BadData, match="img2dataset"):
        load(tmp_path / "x.csv")
    put(tmp_path / "x.csv", b"")
    with pytest.raises(BadData, match="is empty"):
        load(tmp_path / "x.csv")
    put(tmp_path / "x.csv", b"filepath,title\nnone.jpg,b\n")
    with pytest.raises(BadData, match=r"no record.*1 missing file"):
        load(tmp_path / "x.csv")


def test_jsonl_and_json(tmp_path):
    put(tmp_path / "a.jpg")
    lines = [
        b'{"image": "a.jpg", "captions": ["one", "two"], "label": 1}',
        b"{broken",
        b"[1]",
        b'{"image": "\xff"}',
        b"",
    ]
    put(tmp_path / "x.jsonl", b"\n".join(lines))
    records = load(tmp_path / "x.jsonl")
    assert (records[0].text, records[0].texts, records[0].label) == ("one", ("two",), 1)
    assert records.class_names == ["0", "1"] and kinds(records) == {"broken row": 2, "not UTF-8": 1}
    put(tmp_path / "y.json", b'[{"path": "a.jpg", "text": "t"}]')
    assert load(tmp_path / "y.json")[0].text == "t"


def test_parquet_of_pairs(tmp_path):
    pictures = [encoded(noise(i)) for i in range(5)]
    table = {
        "image": [{"bytes": p, "path": None} for p in pictures],
        "caption": ["a", "", "c", "d", None],
        "label": ["x", "y", "x", "y", "x"],
    }
    pq.write_table(pa.table(table), tmp_path / "hub.parquet", row_group_size=2)
    records = load(tmp_path / "hub.parquet")
    assert [(r.text, r.image) for r in records] == [("a", pictures[0]), ("c", pictures[2]), ("d", pictures[3])]
    assert records.labels == [0, 0, 1] and kinds(records) == {"empty caption": 2}
    put(tmp_path / "pics" / "a.jpg")
    pq.write_table(pa.table({"path": ["pics/a.jpg", "pics/b.jpg"], "text": ["t", "u"]}), tmp_path / "paths.parquet")
    assert kinds(load(tmp_path / "paths.parquet")) == {"missing file": 1}
    raw = pa.array([b"good", b"caf\xe9"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"image": pictures[:2], "text": raw}), tmp_path / "latin.parquet")
    assert kinds(load(tmp_path / "latin.parquet")) == {"not UTF-8": 1}


def shard(path, samples):
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)


def test_shards_as_webdataset_writes_them(tmp_path):
    pictures = {f"{s}{i:03d}": encoded(noise(10 * s + i), "JPEG") for s in range(2) for i in range(4)}
    for s in range(2):
        mine = [k for k in pictures if k.startswith(str(s))]
        shard(tmp_path / f"{s:02d}.tar", [{"__key__": k, "jpg": pictures[k], "txt": f"text {k}"} for k in mine])
    records = load(tmp_path)
    assert [r.text for r in records] == [f"text {k}" for k in pictures]
    assert all(records[i].image == pictures[k] for i, k in reversed(list(enumerate(pictures))))
    assert pickle.loads(pickle.dumps(records.subset([5])))[0].image == pictures["1001"]
    assert len(load(f"{tmp_path}/{{00..01}}.tar")) == 8 == len(load(f"{tmp_path}/*.tar"))
    with pytest.raises(BadData, match=r"1 of 3 shards are missing"):
        expand(f"{tmp_path}/{{00..02}}.tar")


def test_shards_with_odd_samples(tmp_path):
    good = encoded(noise(), "PNG")
    samples = [
        {"__key__": "a", "png": good, "json": {"caption": "from json"}},
        {"__key__": "b", "txt": "no picture"},
        {"__key__": "c", "png": b"", "txt": "empty picture"},
        {"__key__": "d", "png": good, "txt": b"caf\xe9"},
        {"__key__": "e", "png": good, "txt": "  "},
        {"__key__": "f", "png": good, "txt": "last"},
    ]
    shard(tmp_path / "x.tar", samples)
    records = load(tmp_path / "x.tar")
    assert [(r.key, r.text) for r in records] == [("a", "from json"), ("f", "last")]
    assert kinds(records) == {"no picture": 1, "zero bytes": 1, "not UTF-8": 1, "empty caption": 1}


def test_shards_of_clip_benchmark(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    for split in ("train", "test"):
        shard(
            tmp_path / split / "0.tar",
            [{"__key__": f"s{i}", "webp": encoded(noise(i), "WEBP"), "cls": i} for i in (1, 0)],
        )
    records = load(tmp_path, "test")
    assert records.class_names == ["cat", "dog"] and records.labels == [1, 0] and records.card.sizes["train"] == 2


@pytest.mark.parametrize("how", ["cut inside", "cut between", "damaged header", "empty", "no tar"])
def test_broken_shards_give_what_is_whole_and_report_the_rest(tmp_path, how):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(6):
            for suffix, data in (("jpg", encoded(noise(i), "JPEG")), ("txt", b"caption")):
                member = tarfile.TarInfo(f"{i}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    with tarfile.open(path) as tar:
        offset = tar.getmember("3.jpg").offset
    data = bytearray(path.read_bytes())
    if how == "cut inside":
        data = data[: offset + 700]
    elif how == "cut between":
        data = data[:offset]
    elif how == "damaged header":
        data[offset : offset + 300] = b"\x07" * 300
    else:
        data = data[:0] if how == "empty" else b"not a tar" * 200
    path.write_bytes(data)
    if how in ("empty", "no tar"):
        with pytest.raises(BadData, match="1 broken shard"):
            read_shards([path])
        return
    records = read_shards([path])
    assert records.keys == ["0", "1", "2"] and kinds(records) == {"broken shard": 1}
    with pytest.raises(BadData, match="broken shard"):
        read_shards([path], on_broken="refuse")


def test_coco(tmp_path):
    put(tmp_path / "val2017" / "a.jpg", encoded(noise(0, (20, 30)), "JPEG"))
    square = [2, 2, 12, 2, 12, 12, 2, 12]
    notes = [
        {"image_id": 1, "category_id": 7, "bbox": [2, 2, 10, 10], "iscrowd": 0, "segmentation": [square]},
        {"image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 20], "iscrowd": 1,
         "segmentation": {"size": [20, 30], "counts": [0, 20, 580]}},
        {"image_id": 1, "category_id": 3, "bbox": [5, 5, 0, 4]},
    ]  # fmt: skip
    data = {
        "images": [
            {"id": 1, "file_name": "a.jpg", "height": 20, "width": 30},
            {"id": 2, "file_name": "gone.jpg", "height": 20, "width": 30},
        ],
        "annotations": notes,
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }
    put(tmp_path / "annotations" / "instances_val2017.json", json.dumps(data).encode())
    assert sniff(tmp_path)[0] == "coco"
    records = load(tmp_path)
    assert records.class_names == ["cat", "dog"] and kinds(records) == {"missing file": 1}
    assert records.report.notes == ["1 boxes without area were left out"]
    boxes, mask = records[0].boxes, records[0].mask
    assert boxes.xyxy.tolist() == [[2, 2, 12, 12], [0, 0, 1, 20]] and boxes.labels.tolist() == [1, 0]
    assert records[0].labels == (0, 1)
    assert boxes.crowd.tolist() == [False, True] and abs(int(mask.instances[0].sum()) - 100) <= 21
    assert mask.instances[1].sum() == 20 and mask.labels[5, 5] == 1 and (mask.labels[:, 0] == 255).all()
    captions = {"images": data["images"][:1], "annotations": [{"image_id": 1, "caption": c} for c in ("x", "y")]}
    put(tmp_path / "annotations" / "captions_val2017.json", json.dumps(captions).encode())
    pair = read_path(tmp_path / "annotations" / "captions_val2017.json")[0]
    assert (pair.text, pair.texts, pair.boxes) == ("x", ("y",), None)
    both = load(tmp_path)
    assert both.card.name == "coco-2017" and both.splits == {"test": 1}
    assert (both[0].text, both[0].texts, len(both[0].boxes)) == ("x", ("y",), 2)
    for name in ("instances_val2017", "captions_val2017"):
        (tmp_path / "annotations" / f"{name}.json").rename(tmp_path / "annotations" / f"my_{name}.json")
    with pytest.raises(BadData, match="2 COCO files: give the path of one"):
        load(tmp_path)


def test_compressed_run_lengths():
    from emblema.data.coco import decode_counts

    assert decode_counts("61X13mN000`0") == [6, 1, 40, 4, 5, 4, 5, 4, 21]  # sums to 90 pixels
