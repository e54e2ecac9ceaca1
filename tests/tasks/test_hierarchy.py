import json
import random

import pytest
import torch

from emblema.core.errors import BadData
from emblema.tasks.hierarchy import Hierarchy, cut, flattened
from emblema.testing import tiny_model
from emblema.testing.squares import NAMES, squares

WARM, COLD = "a warm colour", "a cold colour"
TREE = {WARM: ["red square", "yellow square"], COLD: ["green square", "blue square"]}


class Says:
    """A predictor with given scores by class name."""

    def __init__(self, rows):
        self.rows = rows

    def scores(self, data):
        return torch.tensor([[row[name] for name in data.class_names] for row in self.rows])


@pytest.fixture
def tree(tmp_path):
    path = tmp_path / "tree.json"
    path.write_text(json.dumps(TREE))
    return str(path)


def row(leaf, warm, **more):
    return {n: float(n == leaf) for n in NAMES} | {WARM: float(warm), COLD: float(not warm)} | more


def test_consistency_by_hand(tree):
    data = squares(each=1).split("test")  # red, green, blue, yellow
    says = Says([
        row("red square", True),  # right at leaf and node
        row("green square", True),  # right leaf, wrong node
        row("red square", False),  # wrong leaf, right node
        row("red square", True, **{"yellow square": 0.9}),  # wrong leaf, right node
    ])  # fmt: skip
    outcome = Hierarchy(tree=tree, cuts=40, resamples=10).run(says, data)
    value = {k: v.value for k, v in outcome.metrics.items()}
    assert value["leaf_top1"] == 0.5 and value["hca"] == 0.25
    nodes = {r["node"]: r["accuracy"] for r in outcome.tables["per_node"]}
    assert nodes == {"(root)": 0.75, WARM: 0.5, COLD: 0.5}
    assert outcome.sizes == {"images": 4, "leaves": 4, "nodes": 3}
    assert 0.25 < value["mta"] < 1


def test_a_tree_of_leaves_alone_is_plain_accuracy(tmp_path):
    path = tmp_path / "flat.json"
    path.write_text(json.dumps(list(NAMES)))
    data, model = squares().split("test"), tiny_model(cache=False, precision="fp32")
    found = Hierarchy(tree=str(path), resamples=10).run(model, data).metrics
    assert found["hca"].value == found["leaf_top1"].value == pytest.approx(found["mta"].value)


def test_cuts_cover_every_leaf_once():
    nodes = flattened({"a": {"b": ["p", "q"], "c": ["r"]}, "d": ["s"]}, list("pqrst"))
    assert [n.name for n in nodes] == ["(root)", "a", "b", "c", "d"]
    assert nodes[0].leaves == {0, 1, 2, 3, 4} and nodes[1].leaves == {0, 1, 2}
    under = [{i} for i in range(5)] + [n.leaves for n in nodes[1:]]
    dice = random.Random(1)
    cuts = [cut(nodes, 5, dice, 0.5) for _ in range(50)]
    assert all(sorted(leaf for c in one for leaf in under[c]) == [0, 1, 2, 3, 4] for one in cuts)
    assert len({tuple(one) for one in cuts}) > 3
    assert cut(nodes, 5, dice, 0.0) == [0, 1, 2, 3, 4] and cut(nodes, 5, dice, 1.0) == [5, 8, 4]


def test_the_column_group_is_a_tree():
    data = squares()
    data.columns["group"] = ["warm" if y in (0, 3) else "cold" for y in data.columns["label"]]
    outcome = Hierarchy(resamples=10).run(tiny_model(cache=False, precision="fp32"), data.split("test"))
    assert outcome.sizes["nodes"] == 3 and outcome.metrics["hca"].value <= outcome.metrics["leaf_top1"].value


def test_wrong_trees_teach(tmp_path):
    data, model = squares().split("test"), tiny_model(cache=False)
    with pytest.raises(BadData, match="no column `group`: give --tree FILE"):
        Hierarchy().run(model, data)
    with pytest.raises(BadData, match="leaf 'pink' is no class"):
        flattened({"warm": ["pink"]}, list(NAMES))
    with pytest.raises(BadData, match="'red square' comes twice"):
        flattened({"warm": ["red square"], "other": ["red square"]}, list(NAMES))
    with pytest.raises(BadData, match="no file"):
        Hierarchy(tree=str(tmp_path / "none.json")).run(model, data)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(BadData, match="is no JSON"):
        Hierarchy(tree=str(tmp_path / "bad.json")).run(model, data)
