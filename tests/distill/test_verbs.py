"""From the verb to a student that is used and measured like a model."""

import json
from types import SimpleNamespace

import pytest

from emblema import cli
from emblema.core.errors import BadCheckpoint, NotFitted
from emblema.core.preprocess import Preprocess
from emblema.data import catalog
from emblema.data.scenes import Scenes
from emblema.distill.base import Distill, crop_accuracy
from emblema.distill.clip_es import CLIPES
from emblema.distill.lseg import LSeg
from emblema.frameworks import pretrained
from emblema.testing import tiny_model, tiny_vlm
from emblema.testing.distill import placed_squares
from tests.data.conftest import bundle

__all__ = ["bundle"]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path, bundle):
    monkeypatch.setenv("EMBLEMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    loaded = SimpleNamespace(vlm=tiny_vlm(), preprocess=Preprocess(size=32), templates=["a photo of a {}."])
    monkeypatch.setattr(pretrained, "load_pretrained", lambda name: loaded)
    scenes = Scenes(size=64, sizes={"train": 6, "val": 2, "test": 4}, folder=bundle)
    read = catalog.load
    monkeypatch.setattr(catalog, "load", lambda name: scenes if name == "emblem-scenes" else read(name))


def document(capsys, *arguments):
    code = cli.main([*map(str, arguments), "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    return json.loads(said.out), said.err


def test_a_student_is_made_measured_and_used(capsys, tmp_path):
    run, picture = tmp_path / "run", tmp_path / "a.png"
    settings = ["--image-size", 64, "--optim.batch-size", 4, "--novel-in-train", 0.5, "--images", 5]
    said, error = document(capsys, "distill", "maskclip_plus", *settings, "--steps", 2, "--out", run)
    assert "the gate is 80%" in error and set(said["teacher_crops"]) <= {"base", "novel"} and said["pictures"] == 5
    assert json.loads((run / "config.json").read_text())["facts"]["novel"] == ["banana", "bus", "guitar", "lion"]
    found, _ = document(capsys, "evaluate", "segmentation", "--data", "emblem-scenes", "--model", run)
    assert found["system"] == found["model"] == "maskclip_plus" and 0 <= found["metrics"]["mIoU"]["value"] <= 1
    placed_squares(1)[0].image.save(picture)
    (one,), _ = document(capsys, "segment", picture, "--labels", "cat,dog", "--model", run)
    assert sum(s["share"] for s in one["shares"]) == pytest.approx(1)
    assert cli.main(["detect", str(picture), "--labels", "cat", "--model", str(run)]) == 2
    assert "does not detect; try emblema segment" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["no_such"], "no distill system 'no_such'"),
        ([], "say which: emblema distill SYSTEM"),
        (["lseg", "--body", "big"], "choose auto, teacher, scratch"),
        (["lseg", "--novel-in-train", "2"], "it is a share"),
    ],
)
def test_the_verb_teaches(capsys, more, told):
    assert cli.main(["distill", *more]) == 2
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error


def test_a_student_wants_its_own_teacher_and_a_folder_of_its_own(tmp_path):
    teacher = tiny_model(cache=False)
    with pytest.raises(NotFitted, match="call fit"):
        LSeg().save(tmp_path)
    CLIPES(image_size=64).fit(teacher, placed_squares(2)).save(tmp_path / "run")
    assert isinstance(Distill.load(tmp_path / "run", teacher), CLIPES)
    with pytest.raises(BadCheckpoint, match="give the same teacher"):
        Distill.load(tmp_path / "run", tiny_model(seed=1, cache=False))
    with pytest.raises(BadCheckpoint, match="not of lseg"):
        LSeg.load(tmp_path / "run", teacher)
    with pytest.raises(BadCheckpoint, match="holds no student"):
        Distill.load(tmp_path, teacher)


def test_crops_are_judged_a_part():
    found = crop_accuracy(tiny_model(cache=False), placed_squares(6))
    assert set(found) == {"base", "novel"} and all(0 <= share <= 1 for share in found.values())
