"""A run that was stopped continues to the same bits: banks, teachers and scales are in the checkpoint."""

import signal

import pytest
import torch
from test_invariants import NAMES, method_of

from emblema.core.method import Optim
from emblema.engine import checkpoint
from emblema.engine.train import Interrupted, run_pretraining
from emblema.testing.squares import squares

OPTIM = Optim(lr=1e-3, batch_size=8, precision="fp32")


@pytest.fixture(scope="module")
def data():
    return squares(each=4).split("train")


@pytest.mark.parametrize("name", (*NAMES, "flava", "groupvit", "fiber"))
def test_stopped_and_resumed_is_bit_identical(name, data, tmp_path):
    method = method_of(name, optim=OPTIM)
    options = {"steps": 5, "save_every": 1, "progress": False, "quiet": True}
    run_pretraining(method, data, tmp_path / "whole", **options)

    def ask_to_stop(vlm, step):
        signal.raise_signal(signal.SIGTERM)
        return {}

    with pytest.raises(Interrupted, match="stopped after step 4"):
        run_pretraining(method, data, tmp_path / "run", evaluate=ask_to_stop, evaluate_every=3, **options)
    run_pretraining(method, data, tmp_path / "run", **options)
    for part in ("model", "optimizer"):
        a, b = (checkpoint.latest(tmp_path / r) / f"{part}.safetensors" for r in ("whole", "run"))
        assert a.read_bytes() == b.read_bytes(), part
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_banks_and_teachers_are_in_the_checkpoint(data, tmp_path):
    from safetensors.torch import load_file

    for name, keys in (("declip", ("bank.rows", "bank.pointer", "bank.filled")), ("otter", ("teacher.updates",))):
        run_pretraining(method_of(name, optim=OPTIM), data, tmp_path / name, steps=2, progress=False, quiet=True)
        tensors = load_file(checkpoint.latest(tmp_path / name) / "model.safetensors")
        assert set(keys) <= tensors.keys()
    assert tensors["teacher.updates"] == 2
    moved = [
        n for n in tensors if n.startswith("vlm.") and not torch.equal(tensors[n], tensors[f"teacher.module.{n[4:]}"])
    ]
    assert moved  # the teacher is behind
