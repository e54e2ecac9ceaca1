"""LogitScale: every convention is the same scale with another parameter."""

import math

import pytest
import torch

from emblema.objectives.logit_scale import LogitScale


@pytest.mark.parametrize("param", ["log", "raw", "constant"])
def test_init_is_a_temperature(param):
    assert LogitScale(param, init=0.05)().item() == pytest.approx(20)


@pytest.mark.parametrize("name", LogitScale.PRESETS)
def test_presets(name):
    scale = LogitScale.preset(name)
    expected = {"clip": 1 / 0.07, "align": 1, "albef": 1 / 0.07, "zerovl": 50, "siglip": 10, "unicl": math.e}
    expected |= {"declip": math.exp(3), "otter": math.exp(3.9), "groupvit": 1 / 0.07, "glip": 1, "fiber": 1 / 0.07}
    assert scale().item() == pytest.approx(expected[name])
    assert all(p.ndim == 0 for p in scale.parameters())
    assert LogitScale.preset(name, init=0.02)().item() == pytest.approx(50)
    copy = LogitScale.preset(name)
    copy.load_state_dict(scale.state_dict())


@pytest.mark.parametrize("param", ["log", "raw"])
@pytest.mark.parametrize(("value", "expected"), [(9.0, 100.0), (-50.0, 1.0)])
def test_bound_at_step_moves_the_parameter(param, value, expected):
    scale = LogitScale(param, init=0.02, minimum=1.0, maximum=100.0)
    scale.bound_()
    assert not scale.at_bound and scale().item() == pytest.approx(50)
    with torch.no_grad():
        scale.value.fill_(value)  # a raw temperature may not cross zero either
    scale.bound_()
    if param == "raw":
        expected = {100.0: 1.0, 1.0: 100.0}[expected]
    assert scale.at_bound and scale().item() == pytest.approx(expected)


def test_bound_at_forward_stops_the_gradient():
    scale = LogitScale(init=0.02, maximum=100.0, bound_at="forward")
    with torch.no_grad():
        scale.value.fill_(6.0)
    scale.bound_()  # does nothing here
    assert scale.value.item() == 6 and scale().item() == 100 and scale.at_bound
    scale().backward()
    assert float(scale.value.grad) == 0


def test_not_learnable():
    assert not LogitScale(learnable=False).value.requires_grad
    assert not list(LogitScale("constant").parameters())


def test_errors_teach():
    with pytest.raises(ValueError, match="Pass tau"):
        LogitScale(init=14.3, minimum=1.0)
    with pytest.raises(ValueError, match="'constant'"):
        LogitScale("exp")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="zerovl"):
        LogitScale.preset("clop")
