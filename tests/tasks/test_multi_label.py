import csv

import pytest
import torch
from PIL import Image
from torchmetrics.classification import MultilabelAUROC, MultilabelAveragePrecision

from emblema.core.errors import BadData
from emblema.data import catalog
from emblema.tasks.multi_label import MultiLabel, score, shown
from emblema.testing import tiny_model
from emblema.testing.squares import squares


def drawn(seed, n=80, classes=5):
    g = torch.Generator().manual_seed(seed)
    positive = torch.rand(n, classes, generator=g) < 0.3
    scores = torch.randn(n, classes, generator=g) + positive
    return (scores * 4).round() / 4, positive  # ties


@pytest.mark.parametrize("seed", range(3))
def test_means_equal_torchmetrics(seed):
    scores, positive = drawn(seed)
    found = score(scores, positive, list("abcde"), resamples=20).metrics
    p = scores.sigmoid()  # torchmetrics wants probabilities; the order is the same
    theirs = MultilabelAveragePrecision(5, average="macro", thresholds=None)(p, positive.long())
    assert found["mAP"].value == pytest.approx(float(theirs), abs=1e-5)
    theirs = MultilabelAUROC(5, average="macro", thresholds=None)(p, positive.long())
    assert found["roc_auc"].value == pytest.approx(float(theirs), abs=1e-5)
    assert all(i.low <= i.value <= i.high for i in found.values())


def test_absent_classes_do_not_count_and_are_named():
    scores, positive = drawn(0)
    positive[:, 2] = False
    outcome = score(scores, positive, list("abcde"), [False, False, False, False, True], 10)
    assert "1 classes that no picture shows do not count: c" in outcome.notes[0]
    rows = {row["class"]: row["AP"] for row in outcome.tables["per_class"]}
    assert set(rows) == set("abde") and outcome.metrics["mAP"].value == pytest.approx(sum(rows.values()) / 4)
    assert outcome.metrics["mAP/novel"].value == pytest.approx(rows["e"])
    assert outcome.metrics["mAP/base"].value == pytest.approx((rows["a"] + rows["b"] + rows["d"]) / 3)


def test_nothing_to_rank_and_nan_are_refused():
    scores, positive = drawn(0)
    with pytest.raises(BadData, match="no picture shows any of the classes"):
        score(scores, torch.zeros_like(positive), list("abcde"))
    scores[3, 1] = torch.nan
    with pytest.raises(BadData, match="1 of 80 scores are NaN"):
        score(scores, positive, list("abcde"))
    with pytest.raises(BadData, match=r"\(80, 5\) scores for \(80, 4\)"):
        score(scores, positive[:, :4], list("abcd"))


def test_a_table_with_several_labels_a_row(tmp_path):
    rows = [("red", "red|dark"), ("blue", "blue"), ("black", '["dark"]'), ("white", "")]
    for colour, _ in rows:
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{colour}.png")
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "labels"), *((f"{c}.png", labels) for c, labels in rows)])
    data = catalog.load(tmp_path / "mine.csv")
    assert data.class_names == ["blue", "dark", "red"]
    assert shown(data).tolist() == [[False, True, True], [True, False, False], [False, True, False], [False] * 3]
    found = MultiLabel(resamples=5).evaluate(tiny_model(cache=False, precision="fp32"), data)
    assert 0 < found["metrics"]["mAP"]["value"] <= 1 and found["protocol"]["name"] == "multi-label/mine/test"


def test_one_label_a_picture_is_a_special_case():
    data, model = squares().split("test"), tiny_model(cache=False, precision="fp32")
    outcome = MultiLabel(resamples=5).run(model, data)
    assert outcome.sizes == {"images": 24, "classes": 4, "positives": 24}
    shares = MultiLabel(resamples=5, softmax=True)
    assert shares.protocol(model, data, "test").hash != MultiLabel().protocol(model, data, "test").hash


def test_data_without_labels_teach():
    data = squares().split("test")
    data.columns = {k: v for k, v in data.columns.items() if k != "label"}
    with pytest.raises(BadData, match="have no labels: give a column `labels`"):
        shown(data)
