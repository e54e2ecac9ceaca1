import math

import pytest
import torch

from emblema.core.errors import BadData
from emblema.engine.features import identity
from emblema.report import result
from emblema.tasks.base import labels_of
from emblema.tasks.robustness import Robustness, trend
from emblema.testing import tiny_model
from emblema.testing.squares import squares


class Right:
    """Right on so many of each six pictures of a class (two a domain)."""

    def __init__(self, *places):
        self.places = places

    def scores(self, data):
        y = labels_of(data)
        good = torch.tensor([i % 6 in self.places for i in range(len(y))])
        return torch.nn.functional.one_hot(torch.where(good, y, (y + 1) % 4), 4).float()


def test_domains_by_hand():
    data = squares().split("test")  # domains noto, openmoji, emojione in turn
    found = Robustness(resamples=50).run(Right(0, 3, 1), data)
    value = {k: v.value for k, v in found.metrics.items()}
    assert value["top1_reference"] == 1 and value["top1_shift"] == 0.25 and value["gap"] == 0.75
    assert (value["top1/noto"], value["top1/openmoji"], value["top1/emojione"]) == (1, 0.5, 0)
    assert value["mean_over_domains"] == 0.5 and value["worst_domain"] == 0
    assert {r["domain"]: r["side"] for r in found.tables["per_domain"]} == {
        "noto": "reference", "openmoji": "shift", "emojione": "shift",
    }  # fmt: skip
    named = Robustness(resamples=5, reference="openmoji").run(Right(0, 3, 1), data)
    assert named.metrics["top1_shift"].value == 0.5 and named.metrics["top1_reference"].value == 0.5


def logit(p):
    return math.log(p / (1 - p))


def test_the_trend_is_a_line_in_logit_space():
    points = [(0.9, 0.8), (0.6, 0.5), (0.5, 0.3)]
    x, y = [logit(a) for a, _ in points], [logit(b) for _, b in points]
    import numpy as np

    assert trend(points) == pytest.approx(tuple(np.polyfit(x, y, 1)))
    slope, height = trend([(0.8, 0.5)])
    assert slope == 1 and height == pytest.approx(logit(0.5) - logit(0.8))


def test_effective_robustness_against_result_lines(tmp_path):
    data, path = squares().split("test"), tmp_path / "lines.jsonl"
    for name, places in (("weak", (0, 1)), ("strong", (0, 3, 1, 4, 2))):
        found = Robustness(resamples=5).evaluate(Right(*places), data)
        result.append(path, result.line(found, system=name, model="none", data_hash=identity(data)))
    task = Robustness(resamples=20, baseline=str(path))
    outcome = task.run(Right(0, 1), data)
    assert [row["baseline"] for row in outcome.tables["baselines"]] == ["weak/none", "strong/none"]
    # a baseline lies on the line that goes through two of them
    assert outcome.metrics["effective_robustness"].value == pytest.approx(0, abs=1e-6)
    mean = sum(row["top1_shift"] for row in outcome.tables["baselines"]) / 2
    assert outcome.metrics["relative_robustness"].value == pytest.approx(0.25 - mean)
    better = task.run(Right(0, 1, 4), data)
    assert better.metrics["effective_robustness"].value == pytest.approx(0.25)
    with pytest.raises(BadData, match="2 robustness lines of squares, none of these records"):
        task.run(Right(0), squares().split("val"))


def test_the_reference_may_be_the_validation_split():
    test, val = squares().split("test").where(domain=("openmoji", "emojione")), squares().split("val")
    outcome = Robustness(resamples=5).run(Right(0, 3), test, val=val.where(domain="noto"))
    assert outcome.sizes == {"images": 24, "reference": 8, "shift": 16, "domains": 3}
    assert "the reference is the validation split" in outcome.notes[0]


def test_data_of_one_side_teach():
    data = squares().split("test")
    for one in (data.where(domain="noto"), data.where(domain="openmoji")):
        with pytest.raises(BadData, match=r"all on one side of the shift: measure more splits \(--split val\+test\)"):
            Robustness().run(Right(0), one)
    with pytest.raises(BadData, match="no baseline in ' '"):
        Robustness(baseline=" ").run(Right(0), data)


def test_a_model_is_measured_too():
    found = Robustness(resamples=5).evaluate(tiny_model(cache=False, precision="fp32"), squares().split("test"))
    assert {"top1_reference", "top1_shift", "gap"} <= set(found["metrics"]) and found["protocol"]["templates"]
