"""A trained model of every system is measured by every task, as it comes off the disk."""

import pytest
from test_invariants import NAMES, method_of

import emblema
from emblema.core.method import Optim
from emblema.engine.train import run_pretraining
from emblema.tasks.detection import Detection
from emblema.tasks.linear_probe import LinearProbe
from emblema.tasks.retrieval import Retrieval
from emblema.tasks.segmentation import Segmentation
from emblema.tasks.zero_shot import ZeroShot
from emblema.testing.distill import placed_squares
from emblema.testing.squares import squares


@pytest.mark.parametrize("name", (*NAMES, "flava", "groupvit", "fiber"))
def test_it_is_measured_by_every_task(name, tmp_path):
    data, scenes = squares(each=4), placed_squares(4)
    optim = Optim(lr=1e-3, batch_size=8, precision="fp32")
    method = method_of(name, optim=optim)
    run_pretraining(method, data.split("train"), tmp_path / "run", steps=2, progress=False, quiet=True)
    model = emblema.load(str(tmp_path / "run" / "model"), precision="fp32", cache=False)
    measured = {
        "top1": ZeroShot(resamples=2).run(model, data.split("test")),
        "image_to_text_R@1": Retrieval(resamples=2).run(model, data.split("test")),
        "top1_probe": LinearProbe(resamples=2, c_path=(1.0,)).run(
            model, data.split("test"), train=data.split("train"), val=data.split("val")
        ),
        "mIoU": Segmentation(resamples=2).run(model, scenes),
        "AP50": Detection(resamples=2).run(model, scenes),
    }
    for metric, outcome in measured.items():
        assert 0 <= outcome.metrics[metric.split("_probe")[0]].value <= 1, metric
