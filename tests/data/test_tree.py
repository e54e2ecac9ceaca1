import json

import pytest

from emblema.core.errors import BadData
from emblema.data import catalog
from emblema.data.tree import EMOJI, flattened, read_tree, restricted


def test_the_part_of_a_tree_that_leads_to_some_classes():
    tree = {"animals": {"birds": ["owl", "robin"], "mammals": ["Cat", "dog"]}, "tools": ["axe"]}
    assert restricted(tree, ["owl", "robin", "cat"]) == {"birds": {"owl": None, "robin": None}, "cat": None}
    assert restricted(tree, ["owl", "axe"]) == {"owl": None, "axe": None}
    assert restricted(tree, ["house_key"]) == {} and restricted(tree, ["owl"]) == {"owl": None}
    assert restricted({"doors": {"x": ["house key", "bell"]}}, ["House_Key", "bell"]) == {
        "House_Key": None,
        "bell": None,
    }


def test_the_tree_that_ships_knows_the_bundled_classes():
    tree, depth = read_tree(EMOJI), {}
    for name in ("emblem-objects", "emblem-animals", "emblem-food", "emblem-flags", "emblem-silhouettes", "fashion"):
        classes = catalog.load(name).class_names
        nodes = flattened(restricted(tree, classes), classes)
        depth[name] = len(nodes)
        inside = set().union(*(node.leaves for node in nodes[1:])) if len(nodes) > 1 else set()
        assert len(inside) > 0.7 * len(classes) or name == "emblem-flags", name
    assert depth["emblem-objects"] > 40 and depth["fashion"] == 3


def test_no_node_is_called_like_a_class_and_no_class_comes_twice():
    leaves, nodes = [], []

    def walk(part):
        for name, below in part.items():
            (nodes if below else leaves).append(name)
            walk(below or {})

    walk(read_tree(EMOJI))
    assert len(leaves) == len(set(leaves)) > 1900 and not set(leaves) & set(nodes)


def test_a_file_that_is_no_tree(tmp_path):
    with pytest.raises(BadData, match=r'give a JSON tree.*or the name "emoji"'):
        read_tree(str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(BadData, match="is no JSON"):
        read_tree(str(tmp_path / "bad.json"))
    (tmp_path / "good.json").write_text(json.dumps({"a": ["b"]}))
    assert read_tree(str(tmp_path / "good.json")) == {"a": ["b"]}
