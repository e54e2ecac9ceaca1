import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from emblema.core.errors import BadData
from emblema.engine.optimise import lr_at
from emblema.tasks.hierarchy import Hierarchy
from emblema.testing import tiny_model
from emblema.testing.squares import NAMES, squares
from emblema.transfer.base import coop_recipe
from emblema.transfer.coop import CoOp
from emblema.transfer.protect import ProTeCt

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares()
TRAIN, TEST = DATA.split("train"), DATA.split("test")
TREE = {"warm": ["red square", "yellow square"], "cold": ["green square", "blue square"]}


@pytest.fixture
def tree(tmp_path):
    path = tmp_path / "tree.json"
    path.write_text(json.dumps(TREE))
    return str(path)


def quick(system, **changes):
    recipe = {"steps": 3, "precision": "fp32", "batch_size": 8, "warmup": 0.0, "lr": 0.05, "momentum": 0.9}
    return replace(system, optim=replace(system.optim, **recipe | changes))


class Watched(ProTeCt):
    """Compares the terms of each step with loops."""

    def losses(self, module, batch):
        terms = super().losses(module, batch)
        rows = dict(zip([*NAMES, "warm", "cold"], module.vlm.logits(batch.x.pooled, module.all()).T))
        names = [NAMES[y] for y in batch.labels.tolist()]
        parent = {leaf: node for node, children in TREE.items() for leaf in children}
        root = [row_ce(rows, i, ("warm", "cold"), parent[name]) for i, name in enumerate(names)]
        nodes = [torch.stack(root).mean()]
        for node, children in TREE.items():
            inside = [row_ce(rows, i, children, name) for i, name in enumerate(names) if parent[name] == node]
            nodes += [torch.stack(inside).mean()] if inside else []
        expected = {"cut": nodes[0], "nodes": self.weight * torch.stack(nodes).mean()}  # drop=1: the cut below the root
        assert terms["cut"].item() == pytest.approx(expected["cut"].item(), rel=1e-4)
        assert terms["nodes"].item() == pytest.approx(expected["nodes"].item(), rel=1e-4)
        return terms


def row_ce(rows, i, among, right):
    logits = torch.stack([rows[name][i] for name in among])
    return F.cross_entropy(logits[None], torch.tensor([list(among).index(right)]))


def test_without_its_terms_it_is_coop(tree):
    ours = quick(ProTeCt(tree=tree, weight=0.0, drop=0.0, context_length=2)).fit(MODEL, TRAIN)
    coop = quick(CoOp(context_length=2), weight_decay=0.0).fit(MODEL, TRAIN)
    assert torch.allclose(ours.module_.prompt.context, coop.module_.prompt.context, atol=1e-5)


def test_the_terms_of_a_tree_of_two_levels(tree):
    quick(Watched(tree=tree, drop=1.0, context_length=2)).fit(MODEL, TRAIN)


def test_in_a_flat_tree_both_terms_are_cross_entropy():
    seen = []
    system = quick(ProTeCt(weight=0.5, context_length=2))  # the emoji's tree knows no squares of these colours
    system.fit(MODEL, TRAIN, on_step=lambda step: seen.append(step.losses))
    assert all(s["nodes"] == pytest.approx(0.5 * s["cut"], rel=1e-5) for s in seen) and len(seen) == 3


def test_consistency_over_the_tree_rises(tree):
    scores = []
    for weight, drop in ((0.0, 0.0), (1.0, 0.3)):
        system = quick(ProTeCt(tree=tree, weight=weight, drop=drop, context_length=4), steps=60, lr=0.2)
        scores.append(Hierarchy(tree=tree, resamples=10).run(system.fit(MODEL, TRAIN), TEST).metrics["hca"].value)
    assert scores[1] > scores[0]


def test_a_tree_of_other_things_is_refused(tmp_path):
    (tmp_path / "tree.json").write_text(json.dumps({"animals": ["cat", "dog"]}))
    with pytest.raises(BadData, match=r"names none of the 4 classes, e\.g\. 'red square'"):
        quick(ProTeCt(tree=str(tmp_path / "tree.json"))).fit(MODEL, TRAIN)


def test_the_official_rate_oscillates():
    optim = coop_recipe(lr=0.02, schedule="oscillating")
    rate = [lr_at(step, 200 * 13, optim, epoch_steps=13) for step in (0, 100, 200, 300, 400)]
    assert rate == pytest.approx([0.02, 0.01, 0, 0.01, 0.02], abs=1e-12)
