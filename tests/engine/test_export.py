"""A fitted system as files: the folder answers alike anywhere, the graph answers alike in another runtime."""

import json
from dataclasses import replace

import onnxruntime
import pytest
import torch

from emblema import cli
from emblema.core.errors import BadCheckpoint
from emblema.data.pictures import load_batch
from emblema.engine import export
from emblema.engine.export import CannotExport, Whole, ZeroShot, to_onnx
from emblema.frameworks import checkpoint
from emblema.frameworks.pretrained import load_pretrained
from emblema.model import Model, load
from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.base import load as load_fitted
from emblema.transfer.cocoop import CoCoOp
from emblema.transfer.coop import CoOp
from emblema.transfer.lora import LoRA
from emblema.transfer.tip_adapter_f import TipAdapterF
from emblema.transfer.vp import VP

DATA = squares()
TRAIN, VAL, TEST = (DATA.split(s) for s in ("train", "val", "test"))
MODEL = tiny_model(cache=False, precision="fp32")


def fit(system, model=MODEL):
    changed = replace(system, optim=replace(system.optim, steps=2, batch_size=8, precision="fp32"))
    return changed.fit(model, TRAIN, VAL)


def written(fitted, path):
    return to_onnx(Whole(fitted), path, 32, fitted.class_names_, MODEL.preprocess.to_json())


@pytest.mark.parametrize("system", [CoOp(), TipAdapterF(views=1), VP()], ids=lambda s: s.card.name)
def test_a_graph_answers_as_the_system_does(tmp_path, system):
    fitted = fit(system)
    found = written(fitted, tmp_path / "model.onnx")
    assert found.ok and found.pictures == 8 and found.same_class == 1 and found.largest < 1e-3
    pixels, _ = load_batch(TEST.column("image"), MODEL.preprocess)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    logits = torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])
    torch.testing.assert_close(logits, fitted.predict(TEST), atol=1e-3, rtol=1e-4)
    said = json.loads((tmp_path / "model.json").read_text())
    assert said["class_names"] == DATA.class_names and said["preprocess"]["size"] == 32
    assert said["parity"]["largest"] == found.largest


@pytest.mark.parametrize("system", [CoCoOp(), LoRA()], ids=lambda s: s.card.name)
def test_what_cannot_be_a_graph_says_so_and_leaves_no_file(tmp_path, system):
    fitted = fit(system)
    with pytest.raises(CannotExport, match="no ONNX graph was written"):
        written(fitted, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_answers_otherwise_is_not_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "parity", lambda *_: export.Parity(8, 0.3, 2.0, 1.0))
    with pytest.raises(CannotExport, match=r"differ by up to 3\.00e-01"):
        written(fit(CoOp()), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_parity_sees_a_baked_batch_and_another_answer():
    module = ZeroShot(MODEL.vlm, torch.eye(32)[:4])
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    assert export.parity(module, module, pixels).ok
    assert not export.parity(module, lambda x: module(x) * 1.01, pixels).ok
    assert not export.parity(module, lambda x: module(pixels[:3]), pixels).ok


@pytest.fixture
def place(tmp_path):
    """A checkpoint of the default model's kind in a folder, and a system fitted on it."""
    loaded = load_pretrained("default")
    folder = tmp_path / "mine"
    checkpoint.save(folder, loaded.vlm, loaded.config, loaded.preprocess, loaded.templates)
    model = load(folder, cache=False, precision="fp32")
    fit(CoOp(context_length=4), model).save(tmp_path / "run")
    return tmp_path


@pytest.mark.weights
def test_a_folder_needs_nothing_else(place, monkeypatch):
    run, out = str(place / "run"), place / "out"
    assert cli.main(["export", run, "--out", str(out), "--model", "default", "--json"]) == 0
    (place / "mine").rename(place / "away")
    monkeypatch.chdir(place.parent)
    again = load_fitted(out)
    first = load_fitted(place / "run", Model(load_pretrained("default").vlm, again._model.preprocess))
    assert torch.equal(again.predict(TEST), first.predict(TEST))
    with pytest.raises(BadCheckpoint, match="other weights"):
        other = tiny_model(cache=False)
        export.save(fit(CoOp(context_length=4), other), place / "no", "default")


def test_a_model_and_its_labels_as_a_graph(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("emblema.model.load_any", lambda name: MODEL)
    out = tmp_path / "graph"
    assert cli.main(["export", "tiny", "--labels", "cat,dog,bus", "--out", str(out), "--onnx", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["files"] == ["model.json", "model.onnx"] and said["parity"]["same_class"] == 1
    assert cli.main(["export", "tiny", "--out", str(out), "--onnx"]) == 2
    assert "--labels" in capsys.readouterr().err
    assert cli.main(["export", "tiny", "--out", str(out), "--labels", "a,b"]) == 2
    assert "safetensors already" in capsys.readouterr().err
