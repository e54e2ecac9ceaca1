"""One face: models and fitted systems are measured by the same tasks, again with the same numbers."""

import pytest
import torch

from emblema.core.errors import BadData
from emblema.tasks import cards, find
from emblema.tasks.action import Action
from emblema.tasks.base import Predictor, labels_of
from emblema.tasks.hierarchy import Hierarchy
from emblema.tasks.linear_probe import LinearProbe
from emblema.tasks.multi_label import MultiLabel
from emblema.tasks.retrieval import Retrieval
from emblema.tasks.robustness import Robustness
from emblema.tasks.wording import Worded
from emblema.tasks.zero_shot import ZeroShot
from emblema.testing import tiny_model
from emblema.testing.squares import squares

FACES = [ZeroShot(resamples=20), MultiLabel(resamples=20), Hierarchy(resamples=20, cuts=3), Robustness(resamples=20)]


def grouped():
    data = squares()
    data.columns["group"] = ["warm" if y in (0, 3) else "cold" for y in data.columns["label"]]
    return data.split("test")


class Fitted:
    """What a fitted system shows: scores of the classes that the data name."""

    def __init__(self, model, templates):
        self.inner = Worded(model, templates)

    def scores(self, data):
        return self.inner.scores(data)


@pytest.mark.parametrize("task", FACES, ids=lambda t: t.card.name)
def test_a_predictor_and_the_model_it_is_made_of_agree(task):
    data, model = grouped(), tiny_model(cache=False, precision="fp32")
    fitted = Fitted(model, ["a photo of a {}."])
    assert isinstance(fitted, Predictor) and not isinstance(model, Predictor)
    one, other = task.evaluate(model, data), task.evaluate(fitted, data)
    assert one["metrics"] == other["metrics"]
    assert one["protocol"]["templates"] and not other["protocol"]["templates"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "task",
    [*FACES, Action(resamples=20), LinearProbe(resamples=20), Retrieval(resamples=20)],
    ids=lambda t: t.card.name,
)
def test_the_same_numbers_again_and_with_another_batch_size(task, precision):
    data, others = grouped(), {split: squares().split(split) for split in task.splits()}
    measure = lambda batch_size: task.evaluate(
        tiny_model(cache=False, precision=precision, batch_size=batch_size), data, **others
    )
    first, again, other = measure(24), measure(24), measure(7)
    assert first["metrics"] == again["metrics"] and first["protocol"] == again["protocol"] == other["protocol"]
    for name, interval in first["metrics"].items():
        assert interval["value"] == pytest.approx(other["metrics"][name]["value"], abs=1e-5), name


def test_scores_of_other_classes_and_nan_are_refused():
    class Wrong:
        def __init__(self, columns, value=0.0):
            self.columns, self.value = columns, value

        def scores(self, data):
            return torch.full((len(data), self.columns), self.value)

    data = squares().split("test")
    with pytest.raises(BadData, match="squares has 4 classes, but its records got 3 scores each"):
        ZeroShot().run(Wrong(3), data)
    for task in (ZeroShot(), MultiLabel(), Robustness()):
        with pytest.raises(BadData, match="24 of 24 scores are NaN"):
            task.run(Wrong(4, torch.nan), data)


def test_two_classes_have_a_roc_curve():
    from sklearn.metrics import roc_auc_score

    data, model = squares().split("test").only_classes([0, 1]), tiny_model(cache=False, precision="fp32")
    logits = Worded(model, ["a photo of a {}."]).scores(data)
    found = ZeroShot(resamples=20).run(model, data).metrics["roc_auc"]
    assert found.value == pytest.approx(roc_auc_score(labels_of(data), logits[:, 1] - logits[:, 0]))
    assert found.low <= found.value <= found.high


def test_every_task_has_a_card_and_defaults():
    names = [c["name"] for c in cards()]
    assert {"zero-shot", "multi-label", "hierarchy", "linear-probe", "action", "retrieval", "pair-selection",
            "robustness"} <= set(names)  # fmt: skip
    for name in names:
        assert find(name)().card.name == name


def test_a_transfer_system_is_measured_by_the_same_tasks():
    from emblema.transfer.base import coop_recipe
    from emblema.transfer.coop import CoOp

    data, model = squares(), tiny_model(cache=False, precision="fp32")
    system = CoOp(seed=1, optim=coop_recipe(epochs=1.0))
    system.fit(model, data.split("train"))
    test = grouped()
    top1 = float((system.predict(test).argmax(1) == labels_of(test)).float().mean())
    for task in (ZeroShot(resamples=5), Robustness(resamples=5)):
        found = task.run(system, test).metrics
        assert top1 == pytest.approx(found["top1"].value) if "top1" in found else found["top1_shift"].value <= 1
    assert Hierarchy(resamples=5, cuts=2).run(system, test).metrics["leaf_top1"].value == pytest.approx(top1, abs=0.2)
    half = test.only_classes([2, 0])  # in another order: the system is asked for these classes
    scores = system.for_classes(half.class_names, "squares").predict(half)
    found = ZeroShot(resamples=5).run(system, half).metrics["top1"].value
    assert found == pytest.approx(float((scores.argmax(1) == labels_of(half)).float().mean()))
