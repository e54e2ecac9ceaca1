import pytest
import torch

from emblema.core.errors import BadData
from emblema.tasks import wording as words
from emblema.tasks import zero_shot
from emblema.tasks.base import labels_of
from emblema.tasks.zero_shot import ZeroShot, score
from emblema.testing import tiny_model
from emblema.testing.squares import NAMES, squares


def test_score_by_hand():
    logits = torch.tensor([[3.0, 1, 0], [0, 3, 1], [2, 1, 0], [0, 0, 0]])
    labels = torch.tensor([0, 1, 1, 2])
    outcome = score(logits, labels, ["a", "b", "c"], ["noto", "openmoji", "noto", "openmoji"], [0, 1], 50)
    value = {k: v.value for k, v in outcome.metrics.items()}
    assert value["top1"] == 0.5 and value["top5"] == 1.0  # the tie of the last row counts against
    assert value["mean_per_class"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert value["top1/noto"] == 0.5 and value["top1/openmoji"] == 0.5 and value["top1_heldout_colour"] == 0.5
    assert value["top1/base"] == pytest.approx(2 / 3) and value["top1/novel"] == 0
    assert value["top1/novel_among_novel"] == 1  # there is one novel class
    table = {row["class"]: row for row in outcome.tables["per_class"]}
    assert table["b"] == {"class": "b", "images": 2, "top1": 0.5, "taken_for": "a"}
    assert [row["domain"] for row in outcome.tables["per_domain"]] == ["noto", "openmoji"]
    # of one image there is no interval
    several = [i for name, i in outcome.metrics.items() if not name.startswith("top1/novel")]
    for interval in several:
        assert interval.low <= interval.value <= interval.high


def test_one_domain_is_no_breakdown():
    outcome = score(torch.eye(3), torch.arange(3), ["a", "b", "c"], ["noto"] * 3, resamples=5)
    assert not any("/" in name for name in outcome.metrics)


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setattr(zero_shot, "wording", lambda spec, data: ("plain", ["a {}."]))


def test_the_task_says_what_the_model_says(plain):
    data, model = squares().split("test"), tiny_model(cache=False, precision="fp32")
    found = ZeroShot(resamples=20).evaluate(model, data, "test")
    p = model.classify([r.image for r in data], NAMES, ["a {}."])
    assert found["metrics"]["top1"]["value"] == pytest.approx(float((p.argmax(1) == labels_of(data)).float().mean()))
    assert found["protocol"]["templates"].startswith("plain@") and found["protocol"]["name"] == "zero-shot/squares/test"
    assert {"top1/base", "top1/novel", "top1/noto", "top1_heldout_colour", "ece"} <= set(found["metrics"])
    first = found["predictions"][0]
    assert first["key"] == "test-0-0" and first["labels"][0]["probability"] == pytest.approx(
        float(p[0].max()), abs=1e-5
    )


def test_other_templates_are_another_protocol(tmp_path, plain, monkeypatch):
    data, model = squares().split("test"), tiny_model(cache=False)
    one = ZeroShot().protocol(model, data, "test")
    monkeypatch.setattr(zero_shot, "wording", lambda spec, data: ("plain", ["the {}."]))
    assert ZeroShot().protocol(model, data, "test").hash != one.hash


def test_templates_of_a_file(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("# comment\na {} here\n\nthe {}\n")
    assert words.wording(str(path), None) == ("mine", ["a {} here", "the {}"])
    path.write_text("a photo")
    with pytest.raises(BadData, match=r"'a photo' has no \{\}"):
        words.read_templates(path)
    with pytest.raises(BadData, match="no file"):
        words.read_templates(tmp_path / "none.txt")


def test_unlabelled_data_teaches(plain):
    data = squares().split("test")
    data.columns = data.columns | {"label": [None] * len(data.columns["key"])}
    with pytest.raises(BadData, match="24 of 24 records of squares have no label"):
        ZeroShot().run(tiny_model(cache=False), data)


def test_templates_by_name():
    from emblema.core.errors import UnknownName

    data = squares()
    assert words.wording("", data) == ("squares", ["a photo of a {}."])
    name, texts = words.wording("imagenet", data)
    assert name == "imagenet" and len(texts) == 80
    with pytest.raises(UnknownName, match="did you mean imagenet"):
        words.wording("imagnet", data)
