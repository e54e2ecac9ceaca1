from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from emblema.core.errors import BadData
from emblema.data.datasets import Records
from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.base import load
from emblema.transfer.coop import CoOp
from emblema.transfer.softcpt import SoftCPT, tasks_of

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares()
TASKS = ("warm colours", "cold colours", "cold colours", "warm colours")


def grouped(tasks=TASKS):
    columns = {**DATA.columns, "group": [tasks[label] for label in DATA.columns["label"]]}
    return Records(DATA.card, columns, DATA.class_names)


TRAIN, TEST = grouped().split("train"), grouped().split("test")


def fit(system, data=TRAIN, **changes):
    recipe = {"steps": 3, "precision": "fp32", "batch_size": 8, "warmup": 0.0, "lr": 0.05}
    return replace(system, optim=replace(system.optim, **recipe | changes)).fit(MODEL, data)


def test_a_task_that_writes_the_words_of_coop_is_coop():
    coop = fit(CoOp(context_length=3), DATA.split("train"))
    system = fit(SoftCPT(context_length=3), DATA.split("train"))
    module, context = system.module_, coop.module_.prompt.context.detach()
    e = module.tasks.raw().detach()[0]  # one task: [D]
    with torch.no_grad():
        module.project.weight.copy_(torch.outer(context.flatten(), e) / e.square().sum())
    assert torch.allclose(module.contexts(), context, atol=1e-5)
    assert torch.allclose(system.predict(TEST), coop.predict(TEST), atol=1e-3)


@pytest.mark.parametrize("each", [False, True])
def test_each_class_competes_within_its_task(each):
    system = fit(SoftCPT(context_length=2, each=each))
    batch = next(iter(system.read(TRAIN).batches(system.optim, 1)))
    logits, slow = system.module_(batch.x), []
    for row, y in zip(logits, batch.labels.tolist()):
        own = [c for c in range(4) if TASKS[c] == TASKS[y]]
        slow.append(F.cross_entropy(row[own][None], torch.tensor([own.index(y)])))
    assert torch.allclose(system.losses(system.module_, batch)["cross_entropy"], torch.stack(slow).mean(), atol=1e-5)


def test_a_context_belongs_to_a_task_or_to_a_class():
    shared, own = (fit(SoftCPT(context_length=2, each=each)).module_ for each in (False, True))
    V = shared.contexts()  # [4, 2, d]
    assert torch.equal(V[0], V[3]) and torch.equal(V[1], V[2]) and not torch.allclose(V[0], V[1])
    assert len({tuple(v.flatten().tolist()) for v in own.contexts().detach()}) == 4
    e = shared.tasks.raw()
    alone = fit(SoftCPT(context_length=2), DATA.split("train")).module_
    assert e.shape[0] == 2 and alone.contexts().shape == V.shape[1:]


def test_tasks_are_saved_and_other_classes_are_a_task_of_their_own(tmp_path):
    system = fit(SoftCPT(context_length=2))
    system.save(tmp_path)
    again = load(tmp_path, MODEL)
    assert torch.equal(again.predict(TEST), system.predict(TEST))
    other = again.for_classes(["blue square", "one", "two"], "digits")
    assert other.module_.task_of.tolist() == [0, 1, 1] and again.module_.task_of.tolist() == [0, 1, 1, 0]
    expected = system.module_.tasks.context, other.module_.tasks.context
    assert torch.equal(*expected) and other._facts["title"] == "Handwritten digits"


def test_a_class_of_two_tasks_is_refused():
    wrong = grouped()
    wrong.columns["group"] = ["warm colours" if i % 2 else "cold colours" for i in range(len(wrong))]
    with pytest.raises(BadData, match="is in two tasks"):
        tasks_of(wrong, "group")
    assert tasks_of(DATA, "group") == {}
