"""Segmentation and detection as users meet them: methods of a model, two verbs, and students in folders."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from emblema import cli
from emblema.core.boxes import Boxes
from emblema.core.errors import BadData, UnknownName
from emblema.core.preprocess import Preprocess
from emblema.data.scenes import Scenes
from emblema.frameworks import pretrained
from emblema.model import load_any
from emblema.report.draw import colour_of, draw_boxes, draw_map, side_by_side
from emblema.testing import tiny_model, tiny_vlm
from tests.data.conftest import bundle

__all__ = ["bundle"]

STUDENT = '''
import json
import numpy as np
import torch
from emblema.core.boxes import Boxes
from emblema.core.card import Card


class Halves:
    """Its first word is the left half of any picture."""

    card = Card(name="halves", title="Halves", paper="none", year=2024, section="7", equation="none")

    def __init__(self, name, share):
        self.name, self.share = name, share

    @classmethod
    def load(cls, folder):
        return cls(folder.name, json.loads((folder / "config.json").read_text())["share"])

    def segment(self, images, labels):
        for image in images:
            map_ = torch.full((image.height, image.width), 255)
            map_[:, : int(image.width * self.share)] = 0
            yield map_

    def detect(self, images, labels):
        for image in images:
            box = torch.tensor([[0.0, 0, image.width * self.share, image.height]])
            yield Boxes(box, torch.zeros(1, dtype=torch.long), torch.ones(1))
'''


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("EMBLEMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    loaded = SimpleNamespace(vlm=tiny_vlm(), preprocess=Preprocess(size=32), templates=["a photo of a {}."])
    monkeypatch.setattr(pretrained, "load_pretrained", lambda name: loaded)


@pytest.fixture
def folder(tmp_path):
    pictures = tmp_path / "pictures"
    (pictures / "deep").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(pictures / "a.png")
    Image.fromarray(noise[:, ::-1]).save(pictures / "deep" / "a.jpg")
    Image.fromarray(np.dstack([noise, noise[..., 0]])).save(pictures / "clear.png")
    (pictures / "broken.jpg").write_bytes(b"nothing")
    return pictures


@pytest.fixture
def student(tmp_path):
    """(its folder, its code)"""
    run, code = tmp_path / "run", tmp_path / "halves.py"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"kind": "student", "system": "halves", "share": 0.5}))
    code.write_text(STUDENT)
    return run, code


def document(capsys, *arguments):
    assert cli.main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_model_segments_and_detects_any_picture(folder):
    model = tiny_model(cache=False)
    array = np.asarray(Image.open(folder / "a.png"))
    maps = model.segment([folder / "a.png", array], ["cat", "dog"], background="none", features="plain")
    assert (
        [m.shape for m in maps] == [(40, 60)] * 2
        and maps[0].equal(maps[1])
        and set(maps[0].unique().tolist()) <= {0, 1}
    )
    assert model.segment(array, ["cat"], background="threshold", threshold=1.5)[0].unique().tolist() == [255]
    (found,) = model.detect(array, ["cat", "dog"], floor=0.0, most_proposals=5)
    assert len(found) and found.xyxy[:, 2].max() <= 60 and found.scores.equal(found.scores.sort(descending=True).values)
    with pytest.raises(BadData, match="labels given twice"):
        model.detect(array, ["cat", "cat"])


@pytest.mark.parametrize("verb", ["segment", "detect"])
def test_verbs_write_pictures_and_one_document(capsys, folder, tmp_path, verb):
    out = tmp_path / "out"
    settings = ["--score", "0", "--proposals", "6"] if verb == "detect" else ["--background", "none"]
    found = document(capsys, verb, folder, "--labels", "cat,dog", "--out", out, *settings)
    broken = [f for f in found if f["error"]]
    assert (
        len(found) == 4 and len(broken) == 1 and broken[0]["path"].endswith("broken.jpg") and broken[0]["out"] is None
    )
    assert sorted(p.name for p in out.iterdir()) == ["a-2.png", "a.png", "clear.png"]
    assert all(Image.open(f["out"]).size == (512, 341) for f in found if f["out"])
    whole = next(f for f in found if f["path"].endswith("clear.png"))
    if verb == "segment":
        assert sum(s["share"] for s in whole["shares"]) == pytest.approx(1)
    else:
        assert {b["label"] for b in whole["boxes"]} <= {"cat", "dog"} and all(
            len(b["box"]) == 4 for b in whole["boxes"]
        )


def test_verbs_in_the_terminal(capsys, folder):
    assert cli.main(["segment", str(folder), "--labels", "cat,dog", "--background", "none"]) == 0
    text = capsys.readouterr().out
    assert "cannot be read" in text and "%" in text
    assert cli.main(["detect", str(folder), "--labels", "cat", "--score", "2"]) == 0
    assert "nothing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--out", "SAME"], "would overwrite a.png"),
        (["--out", "SAME/a.png"], "is a file; give a folder"),
        (["--system", "x.py"], "holds no student"),
    ],
)
def test_verbs_teach(capsys, folder, more, told):
    more = [m.replace("SAME", str(folder)) for m in more]
    assert cli.main(["segment", str(folder), "--labels", "cat", *more]) == 2
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error


def test_verbs_take_students(capsys, folder, student, tmp_path):
    run, code = student
    settings = ["--labels", "cat,dog", "--model", run, "--system", code]
    found = document(capsys, "segment", folder / "a.png", *settings, "--out", tmp_path / "out")
    assert found[0]["shares"] == [{"label": "cat", "share": 0.5}]
    pixels = np.asarray(Image.open(found[0]["out"])).astype(int)
    plain = np.asarray(Image.open(folder / "a.png").resize((512, 341), Image.Resampling.BICUBIC)).astype(int)
    changed = (pixels != plain).any(-1)
    assert changed[200:, :250].mean() > 0.9 and not changed[:, 260:].any()
    found = document(capsys, "detect", folder / "a.png", *settings)
    assert found[0]["boxes"] == [{"label": "cat", "score": 1.0, "box": [0.0, 0.0, 30.0, 40.0]}]


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_tasks_take_students_and_coco_files(capsys, bundle, student, tmp_path, task):
    run, code = student
    path = Scenes(size=64, sizes={"test": 4}, folder=bundle).to_coco(tmp_path / "coco", "test")
    settings = ["--data", path, "--resamples", "5"] + (["--background", "own"] if task == "segmentation" else [])
    found = document(capsys, "evaluate", task, *settings, "--model", run, "--student", code)
    assert found["system"] == found["model"] == "run" and found["sizes"]["images"] == 4
    assert 0 <= found["metrics"]["mIoU" if task == "segmentation" else "AP"]["value"] < 1


def test_a_student_is_found_by_name_or_by_the_file_that_you_name(student, tmp_path):
    run, code = student
    assert load_any(run, system=str(code)).name == "run"
    with pytest.raises(UnknownName, match="no distill system 'halves'"):
        load_any(run)
    (run / "config.json").write_text(json.dumps({"kind": "student", "system": str(code)}))
    with pytest.raises(UnknownName):  # a folder does not choose the code that runs
        load_any(run)


def test_a_student_that_cannot_is_told_so(capsys, folder, student):
    run, code = student
    code.write_text(STUDENT.replace("def segment", "def no_segment"))
    assert cli.main(["segment", str(folder), "--labels", "a", "--model", str(run), "--system", str(code)]) == 2
    assert "does not segment; try emblema detect" in capsys.readouterr().err


def test_drawing():
    image = Image.new("RGB", (100, 50), (255, 255, 255))
    labels = torch.full((50, 100), 255)
    labels[:, 50:] = 1
    drawn = np.asarray(draw_map(image, labels, ["a", "b"], strength=1.0))
    assert drawn.shape == (256, 512, 3) and (drawn[100, 100] == 255).all() and tuple(drawn[200, 400]) == colour_of(1)
    boxes = Boxes(torch.tensor([[20.0, 20, 60, 40]]), torch.tensor([0]), torch.tensor([0.5]))
    framed = np.asarray(draw_boxes(image, boxes, ["a"]))
    assert tuple(framed[150, round(20 * 5.12)]) == colour_of(0) and (framed[150, 200] == 255).all()
    edge = Boxes(torch.tensor([[-5.0, -5, 200, 90]]), torch.tensor([0]))  # a long name at the edge stays inside
    assert draw_boxes(image, edge, ["a very long name of a class that does not fit " * 4]).size == (512, 256)
    assert side_by_side(image, image).size == (204, 50)
    assert len({colour_of(i) for i in range(40)}) == 40
