import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from emblema.core.errors import BadData
from emblema.parts import logistic
from emblema.parts.logistic import choose_c, fit, stratified
from emblema.tasks import probe as probing
from emblema.tasks.linear_probe import LinearProbe
from emblema.testing import tiny_model
from emblema.testing.squares import squares


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    x = torch.nn.functional.normalize(torch.from_numpy(x).float(), dim=-1)
    return x, torch.from_numpy(y).long()


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
def test_parity_with_scikit_learn(digits, c):
    x, y = digits[0][:600], digits[1][:600]
    probe = fit(x, y, 10, c, tol=1e-6)
    theirs = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(x.double().numpy(), y.numpy())
    p, q = probe(x).softmax(-1).numpy(), theirs.predict_proba(x.double().numpy())
    assert np.abs(p - q).max() < 2e-3
    objective = lambda w, b: float(
        c * torch.nn.functional.cross_entropy(x.double() @ w + b, y, reduction="sum") + w.pow(2).sum() / 2
    )
    ours = objective(probe.weight[:-1].double(), probe.weight[-1].double())
    best = objective(torch.from_numpy(theirs.coef_.T.copy()), torch.from_numpy(theirs.intercept_))
    assert ours <= best * (1 + 1e-5)


def test_a_warm_start_ends_at_the_same_place_sooner(digits):
    x, y = digits[0][:400], digits[1][:400]
    cold, near = fit(x, y, 10, 30.0), fit(x, y, 10, 10.0)
    warm = fit(x, y, 10, 30.0, near.weight)
    assert warm.steps < cold.steps
    assert torch.allclose(warm(x).softmax(-1), cold(x).softmax(-1), atol=5e-3)


def test_the_gradient_is_that_of_autograd(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        probing, "lbfgs", lambda objective, w, tol, steps: seen.setdefault("f", objective) and (w, [0] * len(w))
    )
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 5, generator=g), torch.randint(3, (20,), generator=g)
    logistic.fit_together(x, y, 3, [2.0, 0.5], [None, None])
    w = torch.randn(2, 6, 3, generator=g, requires_grad=True)
    values, gradients = seen["f"](w.detach().flatten(1), torch.tensor([0, 1]))
    for i, c in enumerate((2.0, 0.5)):
        loss = torch.nn.functional.cross_entropy(x @ w[i, :-1] + w[i, -1], y) + w[i, :-1].pow(2).sum() / (2 * c * 20)
        assert float(values[i]) == pytest.approx(loss.item(), rel=1e-6)
        assert torch.allclose(gradients[i].view(6, 3), torch.autograd.grad(loss, w)[0][i], atol=1e-6)


def test_together_is_the_same_as_apart(digits):
    x, y = digits[0][:300], digits[1][:300]
    path = (0.01, 1.0, 100.0, 1e4)
    together = logistic.fit_together(x, y, 10, path, [None] * 4)
    for c, probe in zip(path, together):
        assert torch.allclose(probe(x).softmax(-1), fit(x, y, 10, c)(x).softmax(-1), atol=5e-3)
    assert len({p.steps for p in together}) > 1  # each leaves when it is done


def test_c_is_chosen_on_validation_and_the_smallest_of_equals(digits):
    x, y = digits
    chosen = choose_c(x[:300], y[:300], x[300:600], y[300:600], 10, (0.01, 1.0, 100.0))
    assert chosen.c == max(chosen.path, key=lambda pair: pair[1])[0]
    easy = torch.eye(4).repeat(5, 1)
    labels = torch.arange(4).repeat(5)
    assert choose_c(easy, labels, easy, labels, 4, (1.0, 10.0)).c == 1.0


def test_stratified_keeps_every_class_on_both_sides():
    y = torch.tensor([0] * 10 + [1] * 2 + [2])
    rest, held = stratified(y, 0.2)
    assert set(y[rest].tolist()) == {0, 1, 2} and set(y[held].tolist()) == {0, 1}
    assert sorted(torch.cat([rest, held]).tolist()) == list(range(13))


def test_classes_that_training_lacks_cost_accuracy_not_a_crash():
    x, y = torch.eye(3), torch.tensor([0, 1, 3])
    assert fit(x, y, 5, 1.0)(x).shape == (3, 5)


def test_nan_features_are_refused():
    with pytest.raises(BadData, match="2 of 2 rows of the features hold NaN"):
        fit(torch.full((2, 2), torch.nan), torch.tensor([0, 1]), 2, 1.0)


class Locked:
    """A test split that notes when it is first read."""

    def __init__(self, data, log):
        self.data, self.log = data, log

    def __getattr__(self, name):
        return getattr(self.data, name)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        self.log.append("test read")
        return self.data[i]


def test_the_test_split_is_read_after_the_choice(monkeypatch):
    log, data = [], squares()
    real = probing.choose_c
    monkeypatch.setattr(probing, "choose_c", lambda *a: log.append("chosen") or real(*a))
    model = tiny_model(cache=False, precision="fp32")
    test = Locked(data.split("test"), log)
    LinearProbe(resamples=10).run(model, test, train=data.split("train"), val=data.split("val"))
    assert log[0] == "chosen" and "test read" in log


@pytest.mark.parametrize("level", ["hidden", "joint"])
def test_the_task_learns_colours(level):
    data, model = squares(), tiny_model(cache=False, precision="fp32")
    task = LinearProbe(resamples=10, level=level)
    outcome = task.run(model, data.split("test"), train=data.split("train"), val=data.split("val"))
    assert outcome.metrics["top1"].value > 0.9 and outcome.sizes["train"] == 48
    width = {"hidden": 64, "joint": 32}[level]
    assert f"features: {level} ({width} dimensions)" in outcome.notes[0]
    without = task.run(model, data.split("test"), train=data.split("train"))
    assert any("held-out training images" in n for n in without.notes) and without.sizes["train"] == 24


def test_wrong_settings_teach():
    data, model = squares().split("test"), tiny_model(cache=False)
    with pytest.raises(BadData, match="needs a training split"):
        LinearProbe().run(model, data)
    with pytest.raises(BadData, match="no feature level 'deep'"):
        LinearProbe(level="deep").run(model, data, train=data)
