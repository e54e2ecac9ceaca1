"""`emblema data check`, `list data` and `--data NAME:PATH` on the command line."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emblema import cli
from emblema.core.errors import BadData
from emblema.data.catalog import brought, load

from . import trees


def run(capsys, *arguments):
    """(exit code, document, standard error)."""
    code = cli.main([*arguments, "--json"])
    out, error = capsys.readouterr()
    return code, json.loads(out) if out else None, error


def test_check_by_name_and_path(capsys, tmp_path):
    trees.mnist(tmp_path)
    code, (found,), _ = run(capsys, "data", "check", "mnist", str(tmp_path))
    assert code == 0 and found["ok"] and found["splits"]["test"] == {"found": 2, "expected": 10_000}
    assert found["warnings"][:2] == ["train: 2 of 60,000 records", "test: 2 of 10,000 records"]
    code, (found,), _ = run(capsys, "data", "check", "mnist", str(tmp_path), "--complete")
    assert code == 1 and "test: 2 of 10,000 records" in found["problems"]
    gone = tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte.gz"
    gone.rename(gone.with_suffix(".bak"))
    code, (found,), _ = run(capsys, "data", "check", f"mnist:{tmp_path}")
    assert code == 1 and found["problems"][0].startswith("t10k-labels-idx1-ubyte is missing: expected at ")
    assert str(gone) in found["problems"][0]
    assert cli.main(["data", "check", "mnist", str(tmp_path)]) == 1
    assert "t10k-labels-idx1-ubyte is missing" in capsys.readouterr().out
    gone.with_suffix(".bak").rename(gone)
    code, (_, pictures), _ = run(capsys, "data", "check", f"mnist:{tmp_path / 'MNIST'}", "--pictures")
    assert code == 0 and pictures["exact_duplicates"] == 2


def test_a_split_file_that_is_missing_is_told_of(capsys, tmp_path):
    trees.eurosat(tmp_path)
    (tmp_path / "eurosat/split_zhou_EuroSAT.json").unlink()
    for i in range(10):  # numbered as published, so that what is left is a known layout
        trees.put(tmp_path, {f"eurosat/2750/Forest/Forest_{i + 1}.jpg": None})
    for picture in tmp_path.rglob("image_*.jpg"):
        picture.unlink()
    for folder in ("AnnualCrop", "SeaLake"):
        (tmp_path / "eurosat/2750" / folder).rmdir()
    _, (found,), _ = run(capsys, "data", "check", "eurosat", str(tmp_path))
    assert f"no split_zhou_EuroSAT.json at {tmp_path}/eurosat/split_zhou_EuroSAT.json" in "; ".join(found["warnings"])
    assert run(capsys, "data", "check", "eurosat", str(tmp_path), "--complete")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["imagenet"], "imagenet is not bundled: bring it and say where, imagenet:PATH"),
        (["imagenet", "{}/nowhere"], "no folder {}/nowhere: give the folder of imagenet"),
        (["imagenet", "{}"], "holds nothing of imagenet. It is read as one of these: [classes] images/val"),
        (["imagenett", "{}"], "did you mean imagenet"),
        (["wukong"], "WuKong is listed only"),
    ],
)
def test_what_cannot_be_checked_is_taught(capsys, tmp_path, arguments, message):
    (tmp_path / "empty.txt").touch()
    code, _, error = run(capsys, "data", "check", *(a.format(tmp_path) for a in arguments))
    assert code == 2 and message.format(tmp_path) in error


def test_alike_sets_are_asked_for_by_name(tmp_path):
    trees.voc_2012(tmp_path)
    folder = tmp_path / "VOCdevkit/VOC2012"
    with pytest.raises(BadData, match="may be voc-2012 or voc-2012-background: say which, as voc-2012:"):
        load(folder)
    trees.cifar10(tmp_path)
    found = brought(tmp_path / "cifar-10-batches-py")
    assert found is not None and found[0].name == "cifar10"


def own(tmp_path, kind):
    """Data of one's own in each general layout, of two pictures; the path to check."""
    trees.put(tmp_path, {"pictures/cat/1.png": None, "pictures/dog/2.jpg": None})
    rows = [("pictures/cat/1.png", "cat"), ("pictures/dog/2.jpg", "dog")]
    if kind == "csv":
        trees.put(tmp_path, {"own.csv": "filepath,label\n" + "".join(f"{p},{c}\n" for p, c in rows)})
    elif kind == "jsonl":
        trees.put(tmp_path, {"own.jsonl": "".join(json.dumps({"image": p, "label": c}) + "\n" for p, c in rows)})
    elif kind == "json":
        trees.put(tmp_path, {"own.json": trees.coco_json(*(p for p, _ in rows))})
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist([{"image": p, "label": c} for p, c in rows]), tmp_path / "own.parquet")
    return tmp_path / f"own.{kind}"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet"])
def test_own_data_passes_and_names_the_picture_that_is_gone(capsys, tmp_path, kind):
    path = own(tmp_path, kind)
    code, (found,), _ = run(capsys, "data", "check", str(path))
    assert code == 0 and found["records"] == 2
    (tmp_path / "pictures/dog/2.jpg").rename(tmp_path / "pictures/dog/2.jpeg")
    code, (found,), _ = run(capsys, "data", "check", str(path))
    assert code == 1 and str(tmp_path / "pictures/dog/2.jpg") in found["broken"][0]["reason"]


def test_list_shows_the_tables(capsys):
    code, found, _ = run(capsys, "list", "data")
    by_name = {c["name"]: c for c in found}
    assert code == 0 and by_name["digits"]["place"] == "bundled" and by_name["lvis"]["place"] == "bring"
    assert by_name["food101"]["sizes"] == {"train": 75_750, "test": 25_250} and by_name["laion5b"]["size"] == "5B pairs"
    cli.main(["list", "data"])
    out = capsys.readouterr().out
    for text in ("bundled (14)", "evaluation: classification (31)", "image-text (16)", "auxiliary (4)", "11-point mAP"):
        assert text in out
    code, card, _ = run(capsys, "data", "show", "oxford_pets")
    assert code == 0 and card["name"] == "pets" and "split_zhou_OxfordPets.json" in card["layouts"][0]


def test_masks_and_pixels_reach_a_batch(tmp_path):
    trees.ade20k(tmp_path)
    record = load(tmp_path / "ADEChallengeData2016", "train")[0]
    assert record.mask is not None and np.array_equal(record.mask.labels.numpy()[0], [255, 0])
