from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from emblema.core.errors import BadCheckpoint, BadData
from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.coop import CoOp
from emblema.transfer.mvlpt import MVLPT, same_task

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares()


def quick(system, **changes):
    settings = {"steps": 3, "lr": 0.05, "warmup": 0.0, "batch_size": 8, "precision": "fp32"} | changes
    system.optim = replace(system.optim, **settings)
    return system


@pytest.mark.parametrize("layout", ["end", "middle"])
def test_one_task_of_words_alone_is_coop(layout):
    ours = quick(MVLPT(context_length=6, image_length=0, layout=layout)).fit(MODEL, DATA.split("train"))
    coop = quick(CoOp(context_length=6, layout=layout)).fit(MODEL, DATA.split("train"))
    assert torch.allclose(ours.predict(DATA.split("test")), coop.predict(DATA.split("test")), atol=1e-4)


def test_classes_of_other_tasks_have_a_logit_of_zero():
    labels = torch.tensor([0, 3, 2])
    assert same_task(labels, (2, 3)).tolist() == [[1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]
    system = quick(MVLPT(tasks=(1, 3))).fit(MODEL, DATA.split("train"))
    batch = system.read(DATA.split("train")).batch(torch.tensor([0, 20]))  # classes 0 and 3
    logits = system.module_(batch.x).detach().clone()
    logits[0, 1:], logits[1, :1] = 0, 0
    expected = F.cross_entropy(logits, torch.tensor([0, 3]))
    assert system.losses(system.module_, batch)["cross_entropy"].item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_target_begins_where_the_source_ended(tmp_path):
    source = quick(MVLPT()).fit(MODEL, DATA.split("train").where(label=(0, 1)))
    source.save(tmp_path)
    target = quick(MVLPT(source=str(tmp_path)), steps=1, lr=0.0).fit(MODEL, DATA.split("train"))
    for ours, theirs in zip(target.module_.parameters(), source.module_.parameters()):
        assert torch.equal(ours, theirs)
    assert torch.allclose(
        target.predict(DATA.split("test")), source.for_classes(DATA.class_names).predict(DATA.split("test")), atol=1e-5
    )


def test_bad_sources_and_tasks_are_told(tmp_path):
    with pytest.raises(BadCheckpoint, match="holds no fitted system"):
        quick(MVLPT(source=str(tmp_path))).fit(MODEL, DATA.split("train"))
    quick(MVLPT(context_length=3)).fit(MODEL, DATA.split("train")).save(tmp_path)
    with pytest.raises(BadCheckpoint, match="with the same lengths and depth"):
        quick(MVLPT(source=str(tmp_path))).fit(MODEL, DATA.split("train"))
    with pytest.raises(BadData, match="are 5 classes, the data have 4"):
        quick(MVLPT(tasks=(2, 3))).fit(MODEL, DATA.split("train"))
