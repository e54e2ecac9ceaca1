from dataclasses import replace

import pytest

from emblema.core.errors import BadData, UnknownName
from emblema.data import catalog
from emblema.tasks import protocols
from emblema.tasks.protocols import Protocol, template_id

BASE = Protocol(name="p", task="zero-shot", data="toy", split="test", metric="top1", templates="a@1")


def test_the_hash_is_pinned():
    # a change here makes every published hash mean something else
    assert BASE.hash == "301d2d9b0111"


@pytest.mark.parametrize(
    "change",
    [{"split": "val"}, {"templates": "a@2"}, {"seeds": (0, 1)}, {"resolution": 64}, {"options": {"pool": "1k"}}],
    ids=str,
)
def test_any_part_changes_the_hash(change):
    assert replace(BASE, **change).hash != BASE.hash


def test_order_of_options_does_not():
    one, two = ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert replace(BASE, options=one).hash == replace(BASE, options=two).hash


def test_an_edited_template_set_is_another():
    assert template_id("x", ["a {}"]) != template_id("x", ["the {}"])


def test_fields_that_later_versions_add_leave_old_hashes_alone():
    assert replace(BASE, shots=(), classes="all", title="x", rules=("y",)).hash == BASE.hash
    assert replace(BASE, shots=(16,)).hash != replace(BASE, shots=(8,)).hash != BASE.hash


HASHES = {  # a change here makes every committed line mean something else
    "action": "87aaeb3b6a4f",
    "base-to-novel": "c4712ee07176",
    "cross-data": "8fe06748f54c",
    "domain-shift": "0fe7b3850b95",
    "few-shot": "38bf1494edad",
    "linear-probe": "0f89cc5c432f",
    "open-vocabulary-detection": "4a14d16954d1",
    "multi-label": "e933e5c5fd20",
    "retrieval": "f4621e3ed385",
    "test-time": "25dd49ed288f",
    "unsupervised": "2210b2554e4e",
    "weak-segmentation": "81a9dfa1252d",
    "zero-shot": "e0a63bdacbfe",
    "zero-shot-segmentation": "278eba9b4651",
}


def test_shipped_protocols():
    assert {c["name"]: c["hash"] for c in protocols.cards()} == HASHES
    known = catalog.names()
    for card in protocols.cards():
        assert set(card["sets"]) <= set(known) and card["title"] and card["rules"] and card["real"]


def test_on_one_data_set():
    rule = protocols.load("few-shot")
    one, two = (rule.on("digits", shots=(k,)) for k in (1, 16))
    assert one.name == "few-shot/digits/1-shot" and one.data == "digits" and one.hash != two.hash
    assert replace(rule, sets=("digits",)).on("digits", shots=(1,)).hash == one.hash  # not of the rest of the suite
    assert one.to_json()["hash"] == one.hash and one.to_json()["shots"] == (1,)


@pytest.mark.parametrize(
    "suffix, text",
    [
        (".yaml", "name: mine\ntask: zero-shot\nmetric: top1\ndata: [a, b]\nshots: [2, all]\nseeds: [7]\n"),
        (
            ".toml",
            'name = "mine"\ntask = "zero-shot"\nmetric = "top1"\ndata = ["a", "b"]\nshots = [2, "all"]\nseeds = [7]',
        ),
    ],
)
def test_own_files(tmp_path, suffix, text):
    path = tmp_path / f"mine{suffix}"
    path.write_text(text)
    found = protocols.load(path)
    assert (found.sets, found.shots, found.seeds, found.split) == (("a", "b"), (2, None), (7,), "test")


@pytest.mark.parametrize(
    "text, message",
    [
        ("name: [", "is no YAML"),
        ("- a", "must be a mapping"),
        ("name: x\nshot: [1]", "no field 'shot'; fields: name"),
        ("name: x", "lacks task, metric"),
        ("name: x\ntask: t\nmetric: m\ntests: both", "tests is 'both'; one of split, base and novel"),
        ("name: x\ntask: t\nmetric: m\nshots: [many]", "shots are whole numbers"),
    ],
)
def test_wrong_files_are_told(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(BadData, match=message):
        protocols.load(path)


def test_unknown_names_are_told(tmp_path):
    with pytest.raises(UnknownName, match="did you mean few-shot"):
        protocols.load("fewshot")
    with pytest.raises(BadData, match="no file"):
        protocols.load(tmp_path / "none.yaml")
