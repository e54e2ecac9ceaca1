from dataclasses import replace

import pytest

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
