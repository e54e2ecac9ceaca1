"""Stop and resume: whatever ends a run, it continues to the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import worker
from toys import Pairs, Squares, canvas, view

from emblema.core.errors import BadCheckpoint, EmblemaError, NotFitted
from emblema.core.method import Optim
from emblema.engine import checkpoint, logs
from emblema.engine.diagnose import NotFinite
from emblema.engine.train import run_pretraining

ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def start(*arguments):
    command = [sys.executable, str(Path(worker.__file__)), *map(str, arguments)]
    return subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def steps(run):
    return [e for e in logs.read(run / "log.jsonl") if e["event"] == "step"]


def numbers(run):
    """What must be equal to the last bit."""
    keep = ("step", "loss", "losses", "scale", "lr", "grad_norm", "duplicates")
    return [{k: e[k] for k in keep} for e in steps(run)]


def assert_same_end(run, other):
    assert numbers(run) == numbers(other)
    assert [e["step"] for e in steps(run)] == list(range(1, worker.STEPS + 1))
    ends = [checkpoint.latest(r) for r in (run, other)]
    for name in ("model", "ema", "optimizer"):
        a, b = ((e / f"{name}.safetensors").read_bytes() for e in ends)
        assert a == b, name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    worker.train(run)
    torch.set_num_threads(threads)
    return run


def test_killed_at_random_and_resumed_is_bit_identical(uninterrupted, tmp_path):
    run = tmp_path / "run"
    for _ in range(2):
        process = start("train", run)
        before = len(steps(run)) if run.exists() else 0
        target = before + random.randint(3, 12)
        while process.poll() is None and len(steps(run)) < target:
            time.sleep(0.002)
        time.sleep(random.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 0 < len(steps(run)) < worker.STEPS
    worker.train(run)
    assert_same_end(run, uninterrupted)


def test_killed_while_a_checkpoint_is_written(uninterrupted, tmp_path):
    run = tmp_path / "run"
    process = start("train", run, "kill-write=21")
    assert process.wait() == -signal.SIGKILL
    left = {f.name for f in (run / "checkpoints").iterdir()}
    assert left == {"step-000007", "step-000014", ".partial-000021"}
    worker.train(run)
    assert_same_end(run, uninterrupted)
    assert {f.name for f in (run / "checkpoints").iterdir()} == {"step-000028", "step-000032"}


def test_a_damaged_checkpoint_is_passed_over(uninterrupted, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(RuntimeError, match="power cut"):
        worker.train(run, evaluate_every=24, evaluate=_power_cut)
    newest = checkpoint.latest(run)
    assert newest.name == "step-000021"
    with (newest / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    assert checkpoint.latest(run).name == "step-000014"
    worker.train(run)
    assert_same_end(run, uninterrupted)


def _power_cut(vlm, step):
    raise RuntimeError("power cut")


def test_a_finished_run_returns_its_model_again(uninterrupted):
    before = numbers(uninterrupted)
    vlm = worker.train(uninterrupted)
    average = checkpoint.load_file(checkpoint.latest(uninterrupted) / "ema.safetensors")
    for name, p in vlm.named_parameters():
        assert torch.equal(p, average[f"module.vlm.{name}"]), name
    assert numbers(uninterrupted) == before and not vlm.training


def test_a_full_disk_loses_nothing(uninterrupted, tmp_path, monkeypatch, capsys):
    run, write, calls = tmp_path / "run", checkpoint.save_file, []

    def full(tensors, path):
        calls.append(path)
        if "000021" in str(path) and "optimizer" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    worker.train(run)  # goes on, and says so
    warnings = [e for e in logs.read(run / "log.jsonl") if e["event"] == "warning" and "No space" in e["text"]]
    assert [w["step"] for w in warnings] == [21] and "That of step 14 is whole" in warnings[0]["text"]
    assert_same_end(run, uninterrupted)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(checkpoint.NotSaved, match="Free some space"):
        worker.train(tmp_path / "other")
    assert not list((tmp_path / "other" / "checkpoints").iterdir())


def test_other_settings_or_data_are_refused_and_named(uninterrupted):
    with pytest.raises(BadCheckpoint, match=r"fields.dropout: 0.1 in the run, 0.3 now"):
        worker.train(uninterrupted, dropout=0.3)
    with pytest.raises(BadCheckpoint, match=r"steps: 32 in the run, 50 now"):
        worker.train(uninterrupted, steps=50)
    with pytest.raises(BadCheckpoint, match=r"data.records: 50 in the run, 49 now"):
        method = Pairs(optim=Optim(batch_size=12))
        run_pretraining(method, Squares(49), uninterrupted, canvas=canvas, view=view, quiet=True)
    with pytest.raises(EmblemaError, match="choose another folder"):
        worker.train(uninterrupted, resume=False)


def test_two_processes_equal_one_and_their_run_resumes_on_one(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [worker.__file__, "gradients", str(tmp_path / "two.pt")]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "threads:" in done.stdout and "gloo" not in done.stdout  # the group's own have ended with it
    for chunk, (losses, gradients, buffers) in torch.load(tmp_path / "two.pt").items():
        expected, one, one_buffers = worker.one_step(chunk)
        assert losses == pytest.approx(expected, rel=1e-5)
        norm = torch.stack([g.norm() for g in one.values()]).norm()
        for name in one:
            error = (gradients[name] - one[name]).norm()
            assert error < 1e-5 * one[name].norm() + 1e-6 * norm, (chunk, name, error, one[name].norm())
        scale = next(n for n in one if "logit_scale" in n)
        assert abs(gradients[scale] / one[scale] - 1) < 1e-5
        for name in buffers:
            torch.testing.assert_close(buffers[name], one_buffers[name], rtol=1e-5, atol=1e-6, msg=name)

    run = tmp_path / "run"  # stopped by SIGTERM to one of the two, which both followed
    assert "stopped after step 11 of 32" in done.stdout
    assert checkpoint.latest(run).name == "step-000011"
    assert json.loads((checkpoint.latest(run) / "state.json").read_text())["world"] == 2
    worker.train(run, dropout=0.0, noise=0.0)
    worker.train(tmp_path / "one", dropout=0.0, noise=0.0)
    joint, alone = steps(run), steps(tmp_path / "one")
    assert [e["step"] for e in joint] == [e["step"] for e in alone] == list(range(1, worker.STEPS + 1))
    for a, b in zip(joint, alone):
        close = 1e-5 if a["step"] == 1 else 1e-2  # round-off grows from step to step
        assert a["losses"] == pytest.approx(b["losses"], rel=close, abs=close / 10), a["step"]


def test_a_nan_keeps_the_checkpoints_and_names_its_step(tmp_path):
    class Broken(Pairs):
        def build(self):
            module = super().build()
            calls = []

            def poison(_, inputs, output):
                calls.append(1)
                return output * float("nan") if len(calls) > 15 else output

            module["vlm"].text.blocks[1].norm2.register_forward_hook(poison)
            return module

        __qualname__ = "Pairs"

    method = Broken(optim=Optim(batch_size=12, precision="fp32"))
    options = {"canvas": canvas, "view": view, "steps": 40, "save_every": 5, "quiet": True}
    with pytest.raises(NotFinite, match=r"step 1[0-9]: "):
        run_pretraining(method, Squares(), tmp_path, **options)
    assert checkpoint.latest(tmp_path).name in ("step-000010", "step-000015")
    last = logs.read(tmp_path / "log.jsonl")[-1]
    assert last["event"] == "not finite" and last["step"] == int(checkpoint.latest(tmp_path).name[-2:]) + 1


def test_evaluation_does_not_change_the_run(uninterrupted, tmp_path):
    seen = []

    def evaluate(vlm, step):
        assert not vlm.training and not torch.is_grad_enabled()
        seen.append(step)
        return {"noise": torch.rand(()).item()}

    worker.train(tmp_path, evaluate=evaluate, evaluate_every=15)
    assert seen == [15, 30, 32]
    assert_same_end(tmp_path, uninterrupted)
    scores = [e for e in logs.read(tmp_path / "log.jsonl") if e["event"] == "evaluation"]
    assert [e["step"] for e in scores] == seen


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vlm = worker.train(None, steps=2)
    assert not vlm.training and not list(tmp_path.iterdir())


def test_fit_gives_the_model():
    method = Pairs(optim=Optim(batch_size=12, precision="fp32"))
    with pytest.raises(NotFitted, match="call fit"):
        _ = method.vlm_
    before = repr(method)
    assert method.fit(Squares(), canvas=canvas, view=view, steps=3, quiet=True) is method
    assert repr(method) == before
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    assert method.vlm_.logits(method.vlm_.encode_image(images), method.vlm_.encode_text(["a red square"])).shape == (
        2,
        1,
    )


def test_a_run_with_all_defaults_ends_in_a_folder_that_loads(tmp_path):
    """Real pictures, views, tokenizer, objective and checkpoint format."""
    from PIL import Image

    from emblema.engine.train import preprocess_of
    from emblema.frameworks.checkpoint import load
    from emblema.pretrain.clip import CLIP

    class Plain(Squares):
        def __getitem__(self, i):
            record = super().__getitem__(i)
            picture = Image.new("RGB", (40 + i, 50), record.texts[0])
            return type(record)(key=record.key, image=picture, text=record.text, label=record.label)

    method = CLIP(arch="tiny", optim=Optim(batch_size=16, chunk=8, ema=0.5, patch_drop=0.25))
    model = method.fit(Plain(), tmp_path, steps=4, quiet=True).vlm_
    saved = load(tmp_path / "model")
    again = saved.vlm
    assert saved.preprocess == preprocess_of(model) and saved.preprocess.mode == "pad"  # as while training
    texts = ["a red square", "a blue square"]
    torch.testing.assert_close(again.encode_text(texts), model.encode_text(texts))
    assert method.fit(Plain(), tmp_path, steps=4, quiet=True).vlm_ is not model  # from its checkpoint
