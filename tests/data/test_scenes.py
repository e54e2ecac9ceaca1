"""Composed scenes: pure in their seed, exact in their boxes, honest in their captions."""

import json
import pickle
import re
from collections import Counter

import numpy as np
import pytest
import torch

from emblema.core.batch import Record
from emblema.core.errors import BadData
from emblema.data import fewshot
from emblema.data.catalog import load
from emblema.data.coco import read_coco
from emblema.data.colours import colour_name
from emblema.data.scenes import CATEGORIES, Scenes, swapped


@pytest.fixture(scope="module")
def scenes(bundle):
    return Scenes(seed=3, sizes={"train": 60, "test": 60}, folder=bundle)


def same(one, other):
    return (
        (one.key, one.text, one.texts, one.labels) == (other.key, other.text, other.texts, other.labels)
        and np.array_equal(np.asarray(one.image), np.asarray(other.image))
        and torch.equal(one.boxes.xyxy, other.boxes.xyxy)
        and torch.equal(one.mask.labels, other.mask.labels)
    )


def test_a_scene_is_a_function_of_seed_split_and_number(scenes, bundle):
    again = Scenes(seed=3, sizes={"train": 60, "test": 60}, folder=bundle)
    assert all(same(scenes[i], again[i]) for i in (59, 100, 0))  # in any order
    assert same(pickle.loads(pickle.dumps(scenes))[7], scenes[7]) and same(scenes.split("test")[2], scenes[62])
    assert not same(scenes[0], Scenes(seed=4, folder=bundle)[0])
    assert scenes.scene(5, "train").key != scenes.scene(5, "test").key and len(load("emblem-scenes", folder=bundle)) > 9


def test_boxes_are_the_tightest_around_the_masks(scenes):
    for record in scenes.subset(range(0, 120, 7)):
        masks, labels = record.mask.instances, record.boxes.labels.tolist()
        assert (masks.sum(0) <= 1).all() and masks.any(0).equal(record.mask.labels != 255)
        for mask, box, label in zip(masks, record.boxes.xyxy.int().tolist(), labels):
            x1, y1, x2, y2 = box
            assert mask[y1:y2, x1:x2].sum() == mask.sum() > 0
            assert mask[y1].any() and mask[y2 - 1].any() and mask[:, x1].any() and mask[:, x2 - 1].any()
            assert (record.mask.labels[mask] == label).all()
        assert record.labels == tuple(sorted(set(labels))) and 1 <= len(labels) <= 4


def test_novel_classes_and_test_families_stay_in_the_test_split(scenes, bundle):
    base, novel = CATEGORIES["small"]
    seen = {s: {v for r in scenes.split(s) for v in r.labels} for s in ("train", "test")}
    assert seen["train"] == set(range(len(base))) and seen["test"] == set(range(12))
    assert scenes.class_names == [*base, *novel] and scenes.novel_classes() == list(novel)
    stock = scenes._stickers("train"), scenes._stickers("test")
    assert not {n for v in stock[0].values() for n in v} & {n for v in stock[1].values() for n in v}
    more = Scenes(novel_in_train=True, folder=bundle)
    assert {v for i in range(60) for v in more[i].labels} == set(range(12))
    with pytest.raises(BadData, match=r"no train sticker.*zebra"):
        Scenes(categories=(["cat", "zebra"], ["lion"]), folder=bundle)[0]


def test_captions_tell_what_the_boxes_show(scenes):
    compared = 0
    for record in scenes:
        where = dict(zip((scenes.class_names[v] for v in record.boxes.labels.tolist()), record.boxes.xyxy.tolist()))
        for caption in record.texts:
            found = re.match(r"^an? (.+) (left of|right of|above|below|on top of) an? (.+)$", caption)
            if not found or ", " in caption:
                continue
            one, other = (next(n for n in where if side.endswith(n)) for side in found.group(1, 3))
            (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = where[one], where[other]
            dx, dy = (ax1 + ax2 - bx1 - bx2) / 2, (ay1 + ay2 - by1 - by2) / 2
            slack = 12  # boxes show what is visible, captions the whole
            assert {
                "left of": dx < slack, "right of": dx > -slack, "above": dy < slack, "below": dy > -slack,
                "on top of": dy < 0 and abs(ay2 - by1) < slack,
            }[found[2]], caption  # fmt: skip
            compared += 1
        assert all(name in record.texts[-1] or name in record.text for name in where)
    assert compared > 60


def test_swapped_captions_are_near_and_false(scenes):
    text = "a red car left of an umbrella, and a cat above the umbrella"
    assert swapped(Record(key="x", text=text)) == {
        "order": "an umbrella left of a red car, and a cat above the umbrella",
        "relation": "a red car right of an umbrella, and a cat above the umbrella",
        "attribute": "a blue car left of an umbrella, and a cat above the umbrella",
    }
    assert swapped(Record(key="x", text="one cat")) == {} == swapped(Record(key="x"))
    for record in scenes:
        wrong = swapped(record)
        assert not set(wrong.values()) & {record.text, *record.texts}
        assert len(record.boxes) == 1 or {"order", "relation"} <= wrong.keys()


def test_scenes_survive_coco_and_back(scenes, tmp_path):
    path = scenes.to_coco(tmp_path, "test", limit=6)
    records = read_coco(path)
    for i, record in enumerate(records):
        scene = scenes.scene(i, "test")
        assert torch.equal(record.boxes.xyxy, scene.boxes.xyxy) and torch.equal(record.boxes.labels, scene.boxes.labels)
        assert torch.equal(record.mask.instances, scene.mask.instances)
        assert torch.equal(record.mask.labels, scene.mask.labels)
    captions = read_coco(path.with_name("captions_test.json"))
    assert captions[0].text == scenes.scene(0, "test").text
    assert [c["novel"] for c in json.loads(path.read_text())["categories"]] == [False] * 8 + [True] * 4


def test_a_share_of_the_training_scenes_shows_novel_things(bundle):
    some, all_ = (Scenes(novel_in_train=share, folder=bundle) for share in (0.3, True))
    novel = lambda scenes, split: [any(v >= 8 for v in scenes.scene(i, split).labels) for i in range(80)]
    mixed = novel(some, "train")
    assert 0 < sum(mixed) < sum(novel(all_, "train")) and sum(novel(some, "test")) > sum(mixed)
    assert same(some[mixed.index(True)], all_[mixed.index(True)])  # the scenes that may are those of True
    with pytest.raises(BadData, match="share of the training scenes"):
        Scenes(novel_in_train=3, folder=bundle)


def test_compositional_classes_are_a_colour_and_a_thing(bundle):
    scenes = load("emblem-scenes-pairs", folder=bundle)
    base, novel = scenes.base_classes(), scenes.novel_classes()
    assert len(base) == 8 and len(novel) == 4 and scenes.card.name == "emblem-scenes-pairs"
    assert {w for name in novel for w in name.split()} <= {w for name in base for w in name.split()}
    assert {v for i in range(40) for v in scenes.scene(i).labels} == set(range(8))
    for number in range(12):
        record = scenes.scene(number, "test")
        pixels = np.asarray(record.image).astype(float)
        for mask, label in zip(record.mask.instances.numpy(), record.boxes.labels.tolist()):
            colour = scenes.class_names[label].split()[0]
            r, g, b = pixels[mask].mean(0)
            assert {"red": r > 1.5 * max(g, b), "green": g > 1.3 * max(r, b), "blue": b > 1.3 * max(r, g),
                    "yellow": min(r, g) > 1.5 * b}[colour]  # fmt: skip
        assert all(
            scenes.class_names[v] in record.texts[-1] or scenes.class_names[v] in record.text for v in record.labels
        )


def test_size_and_number_of_things(bundle):
    small = Scenes(size=64, things=(2, 2), folder=bundle)
    assert small[0].image.size == (64, 64) and {len(small[i].boxes) for i in range(20)} <= {1, 2}


@pytest.mark.parametrize(
    ("rgb", "name"),
    [((220, 30, 20), "red"), ((20, 60, 220), "blue"), ((250, 250, 250), "white"), ((120, 120, 120), "grey"),
     ((120, 70, 20), "brown"), ((250, 210, 30), "yellow"), ((20, 160, 60), "green"), ((10, 10, 10), "black")],
)  # fmt: skip
def test_colour_names(rgb, name):
    picture = np.zeros((10, 10, 4), dtype=np.uint8)
    picture[2:8] = (*rgb, 255)
    assert colour_name(picture) == name
    assert colour_name(np.zeros((4, 4, 4), dtype=np.uint8)) is None
    picture[2:5, :, :3] = np.random.default_rng(0).integers(0, 255, (3, 10, 3))
    assert colour_name(picture, share=0.9) is None


def test_few_shots_of_scenes_show_every_seen_class_often_enough(bundle):
    made = Scenes(0, size=64, sizes={"train": 400, "test": 1}, folder=bundle).split("train")
    keys = fewshot.draw(made, 3, 1)
    assert keys == fewshot.draw(made, 3, 1) != fewshot.draw(made, 3, 2)
    row = {key: i for i, key in enumerate(made.keys)}
    shown = Counter(label for key in keys for label in made[row[key]].labels)
    assert set(shown) == set(range(8)) and min(shown.values()) >= 3  # base classes; novel ones are not waited for
    before: Counter = Counter()
    for key in keys:
        labels = made[row[key]].labels
        assert any(before[label] < 3 for label in labels)  # each was taken for a class that lacked pictures
        before.update(labels)
