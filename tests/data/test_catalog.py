"""Data by name: cards without torch, near misses, the guard of the test split; templates, draws and clips."""

import subprocess
import sys
from collections import Counter

import pytest

from emblema.core.errors import BadData, UnknownName
from emblema.data import fewshot
from emblema.data.catalog import cards, load, names
from emblema.data.templates import IMAGENET, IMAGENET_BEST, fill, fill_all, templates_for


def test_names_need_no_torch():
    code = "import sys; from emblema.data.catalog import cards; cards(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_names_and_near_misses(bundle):
    assert names(bundle) == ["emblem-actions", "emblem-objects", "emblem-photos", "emblem-scenes", "emblems"]
    card = next(c for c in cards(bundle) if c["name"] == "emblem-photos")
    assert card["trainable"] is False and card["sizes"] == {"test": 1}
    with pytest.raises(UnknownName, match="did you mean emblem-scenes"):
        load("emblem-scene", folder=bundle)


def test_no_test_record_ever_trains(bundle):
    for name in ("emblems", "emblem-objects", "emblem-actions", "emblem-scenes"):
        train = load(name, "train", folder=bundle)
        assert set(train.column("split")) == {"train"}
    with pytest.raises(BadData, match="emblem-photos is for evaluation only"):
        load("emblem-photos", "train", folder=bundle)
    assert len(load("emblem-photos", "test", folder=bundle)) == 1
    with pytest.raises(BadData, match="no split 'val'"):
        load("emblems", "val", folder=bundle)


def test_clips(bundle):
    actions = load("emblem-actions", folder=bundle)
    assert actions.class_names == ["dying", "running"] and actions.novel_classes() == ["dying"]
    record = actions.where(domain="human")[0]
    assert record.domain == "human" and len(record.image) == 3
    assert {f.size for f in record.image} == {(64, 64)} and {f.mode for f in record.image} == {"RGB"}
    assert record.image[0].getpixel((0, 0)) == (255, 255, 255)
    assert record.image[0].tobytes() != record.image[1].tobytes()


def test_templates(bundle):
    assert len(IMAGENET) == len(set(IMAGENET)) == 80 and all(t.count("{}") == 1 for t in IMAGENET)
    assert len(IMAGENET_BEST) == 7 and set(IMAGENET_BEST) <= set(IMAGENET)
    assert templates_for("emblems", bundle) == ("a drawing of a {}.", "{}.")
    assert templates_for("my-folder", bundle) == ("a photo of a {}.",) and len(templates_for("imagenet")) == 80
    assert fill("a photo of a {}.", "hot_dog") == "a photo of a hot dog."
    assert fill("a photo of a {}.", "owl") == "a photo of a owl."
    assert fill("a photo of a {}.", "owl", articles=True) == "a photo of an owl."
    assert fill("a photo of a {}.", "an owl", articles=True) == "a photo of an owl."
    assert fill("{}.", "owl", articles=True) == "owl." and fill("A {}", "ape", articles=True) == "An ape"
    assert fill("art of the {}.", "owl", articles=True) == "art of the owl."
    assert fill_all(["a {}", "the {}"], ["x", "y"]) == [["a x", "the x"], ["a y", "the y"]]


def test_few_shot_draws(bundle, tmp_path):
    objects = load("emblem-objects", "train", folder=bundle)
    drawn = fewshot.few_shot(objects, 1, seed=1)
    assert Counter(drawn.labels) == Counter(range(12)) and drawn.class_names == objects.class_names
    assert fewshot.draw(objects, 1, 1) == drawn.keys
    assert any(fewshot.draw(objects, 1, s) != drawn.keys for s in (2, 3))
    assert len(fewshot.draw(objects, 16, 1)) == 24
    with pytest.raises(BadData, match="test records"):
        fewshot.draw(load("emblem-objects", folder=bundle), 1, 1)
    with pytest.raises(BadData, match="lacks 1 of the 1 keys"):
        fewshot.take(objects, ["openmoji/cat"])
    with pytest.raises(BadData, match="no labels"):
        fewshot.draw(load("emblems", "train", folder=bundle), 1, 1)
    fewshot.save_draws(tmp_path / "draws.json", {(1, 1): drawn.keys})
    assert drawn.keys[0] in (tmp_path / "draws.json").read_text()
