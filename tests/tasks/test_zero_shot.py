import pytest
import torch

from emblema.core.errors import BadData
from emblema.tasks import wording as words
from emblema.tasks import zero_shot
from emblema.tasks.base import labels_of
from emblema.tasks.classification import score
from emblema.tasks.zero_shot import ZeroShot
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
    table = {row["class"]: row for row in outcome.tables["per_class"]}
    assert table["b"] == {"class": "b", "images": 2, "top1": 0.5, "taken_for": "a"}
    assert [row["domain"] for row in outcome.tables["per_domain"]] == ["noto", "openmoji"]
    assert (
        value["top1/base_among_base"] == pytest.approx(2 / 3)
        and value["top1/novel_among_novel"] == 1
        and value["top1/harmonic"] == 0
    )
    several = [
        i for name, i in outcome.metrics.items() if not name.startswith("top1/novel")
    ]  # of one image there is no interval
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


def test_templates_of_siglip_are_lower_case_without_punctuation():
    from emblema.data.templates import IMAGENET, canonical

    assert canonical("A close-up photo of the {}.") == "a closeup photo of the {}"
    _, texts = words.wording("siglip", squares())
    assert len(texts) == len(IMAGENET) and "itap of a {}" in texts


def test_published_templates_are_found_by_the_name_of_the_set(tmp_path, monkeypatch):
    from emblema.data import templates

    (tmp_path / "food101.json").write_text('{"source": "s", "templates": ["a photo of {}, a type of food."]}')
    (tmp_path / "svhn.json").write_text('{"source": "s", "classes": ["zero"]}')
    monkeypatch.setattr(templates, "PUBLISHED", tmp_path)
    assert words.wording("food101", None) == ("food101", ["a photo of {}, a type of food."])
    assert templates.templates_for("svhn") == templates.PLAIN


class Tuned:
    """An embedder whose texts are right with one template, and random with the others."""

    device = torch.device("cpu")

    def __init__(self):
        self.vlm = type("V", (), {"logits": staticmethod(lambda z, w: 10 * z @ w.T)})

    def features(self, data, level=None):
        return torch.nn.functional.one_hot(labels_of(data), 4).float()

    def class_vectors(self, names, templates):
        g = torch.Generator().manual_seed(0)
        noise = torch.nn.functional.normalize(torch.randn(4, 4, generator=g), dim=-1)
        z = torch.stack([torch.eye(4) if t == "good {}" else noise for t in templates]).mean(0)
        return torch.nn.functional.normalize(z, dim=-1)


def test_templates_are_searched_on_the_validation_split_only(tmp_path):
    path = tmp_path / "pool.txt"
    path.write_text("bad {}\ngood {}\nworse {}\n")
    data = squares()
    task = ZeroShot(templates=str(path), search=3, resamples=5)
    assert task.splits() == ("val",) and ZeroShot().splits() == ()
    found = task.evaluate(Tuned(), data.split("test"), val=data.split("val"))
    assert found["tables"]["templates"] == [{"template": "good {}", "validation_top1": 1.0}]
    assert found["metrics"]["top1"]["value"] == 1 and found["sizes"]["templates"] == 1
    assert (
        found["protocol"]["name"] == "zero-shot-searched/squares/test" and found["protocol"]["options"]["search"] == 3
    )
    with pytest.raises(BadData, match="templates are never chosen on the pictures that are measured"):
        task.run(Tuned(), data.split("test"))


def test_classes_of_one_name_share_a_vector():
    z = words.class_vectors(tiny_model(cache=False, precision="fp32"), ["crane", "cat", "crane"], ["a {}."])
    assert z.shape == (3, 32) and torch.equal(z[0], z[2]) and not torch.equal(z[0], z[1])
