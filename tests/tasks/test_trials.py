from dataclasses import replace

import pytest

from emblema.core.card import DatasetCard
from emblema.core.errors import BadData
from emblema.data import catalog
from emblema.data.datasets import Records
from emblema.tasks.protocols import load
from emblema.tasks.trials import trials


def toy(name="toy", classes=5, train=6, test=3, domains=(), val=0):
    rows = [(s, c, i) for s, n in (("train", train), ("val", val), ("test", test)) for c in range(classes)
            for i in range(n)]  # fmt: skip
    columns = {"key": [f"{s}/{c}/{i}" for s, c, i in rows], "image": [b"x"] * len(rows)}
    columns |= {"label": [c for _, c, _ in rows], "split": [s for s, _, _ in rows]}
    if domains:
        columns["domain"] = [domains[i % len(domains)] if s == "test" else "home" for s, _, i in rows]
    card = DatasetCard(name=name, title=name, task="classification", classes=classes)
    return Records(card, columns, [f"{name} {c}" for c in range(classes)])


def test_few_shot_is_a_trial_a_set_shots_and_seed():
    found = list(trials(load("few-shot"), [toy("a"), toy("b", classes=3)]))
    assert [(t.data, t.shots, t.seed) for t in found] == [
        (d, k, s) for d in "ab" for k in (1, 2, 4, 8, 16) for s in (1, 2, 3)
    ]
    assert found[0].protocol.name == "few-shot/a/1-shot" and found[0].protocol.shots == (1,)
    assert len({t.protocol.hash for t in found}) == 10  # a set and its shots; seeds are of one protocol
    assert {k: len(v) for k, v in found[0].tests.items()} == {"test": 15}


def test_base_to_novel_tests_two_closed_problems():
    one = next(iter(trials(load("base-to-novel"), toy())))
    assert one.selection.class_names == one.tests["base"].class_names == ["toy 0", "toy 1", "toy 2"]
    assert one.tests["novel"].class_names == ["toy 3", "toy 4"] and set(one.tests["novel"].labels) == {0, 1}
    assert len(one.tests["base"]) == 9 and len(one.tests["novel"]) == 6


def test_cross_data_learns_from_the_first_and_tests_the_others():
    found = list(trials(load("cross-data"), [toy("a"), toy("b", classes=2), toy("c", classes=3)]))
    assert len(found) == 3 and {t.data for t in found} == {"a"}
    assert {k: v.class_names for k, v in found[0].tests.items()} == {
        "b": ["b 0", "b 1"],
        "c": ["c 0", "c 1", "c 2"],
    }
    with pytest.raises(BadData, match="give at least two"):
        next(iter(trials(load("cross-data"), toy())))


def test_domain_shift_tests_each_held_out_domain_or_the_shifted_sets():
    one = next(iter(trials(load("domain-shift"), toy(domains=("x", "y"), test=4))))
    assert {k: len(v) for k, v in one.tests.items()} == {"x": 10, "y": 10}
    shifted = next(iter(trials(load("domain-shift"), [toy("imagenet"), toy("imagenet_a", classes=2)])))
    assert list(shifted.tests) == ["imagenet_a"] and shifted.tests["imagenet_a"].class_names[-1] == "imagenet_a 1"


def test_unsupervised_sees_pictures_without_labels_and_zero_shot_sees_none():
    one = next(iter(trials(load("unsupervised"), toy())))
    assert len(one.selection.unlabelled) == 30 and len(one.selection.train) == 0
    other = next(iter(trials(load("zero-shot"), toy(train=0))))  # needs no training split
    assert len(other.selection.train) == 0 and other.selection.class_names == [f"toy {c}" for c in range(5)]


def test_the_validation_split_is_not_learnt_from_where_it_is_tested():
    one = next(iter(trials(load("few-shot"), toy(test=0, val=4))))
    assert list(one.tests) == ["val"] and len(one.selection.val) == 0


def test_own_pictures_without_splits_are_partitioned():
    whole = toy(train=10, test=0)
    bare = Records(whole.card, {k: v for k, v in whole.columns.items() if k != "split"}, whole.class_names)
    one = next(iter(trials(replace(load("few-shot"), shots=(4,)), bare)))
    assert len(one.selection.train) == 20 and len(one.selection.val) == 10 and len(one.tests["test"]) == 15


def test_detection_tests_all_classes_in_one_run():
    scenes = catalog.load("emblem-scenes")
    one = next(iter(trials(load("open-vocabulary-detection"), scenes)))
    assert one.selection.class_names == scenes.base and list(one.tests) == ["test"]
    assert one.tests["test"].class_names == scenes.base + scenes.novel
