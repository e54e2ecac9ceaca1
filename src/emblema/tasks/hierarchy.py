"""Hierarchical consistency: is the model right at every level of a tree of classes, not at its leaves alone?

ProTeCt (2306.02240): a picture is consistent when its leaf is right among all leaves and, at each inner node above
it, the right child wins among the node's children (HCA). A tree cut is a set of nodes that covers every leaf once;
MTA is the mean accuracy over random cuts, each inner node kept or replaced by its children by a coin.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emblema.core.card import TaskCard
from emblema.core.errors import BadData
from emblema.data.tree import EMOJI, Tree, cut, flattened, read_tree, restricted, tree_file
from emblema.tasks import metrics
from emblema.tasks.base import Outcome, Predictor, Renamed, Task, column, labels_of
from emblema.tasks.protocols import short_hash, template_id
from emblema.tasks.statistics import bootstrap, mean_of
from emblema.tasks.wording import scores_of, wording


@dataclass(kw_only=True)
class Hierarchy(Task):
    card = TaskCard(
        name="hierarchy",
        title="Hierarchical consistency",
        section="3.4 classification",
        metric="hca",
        needs=("labels",),
    )
    tree: str = ""  # a JSON file {"animals": {"birds": ["owl", "robin"]}}, or "emoji"; default: the column `group`
    cuts: int = 25  # random tree cuts
    keep: float = 0.5  # probability that a cut keeps an inner node
    templates: str = ""  # a template set, or a text file with a template a line; default: the data set's own
    resamples: int = 1000  # of the bootstrap

    def run(self, model, data) -> Outcome:
        labels, leaves = labels_of(data), list(data.class_names)
        nodes = flattened(tree_of(self.tree, data), leaves)
        names = leaves + [node.name for node in nodes[1:]]  # the root has no text
        _, templates = wording(self.templates, data)
        scores = scores_of(model, Renamed(data, names), templates)
        if scores.shape[1] != len(names):
            raise BadData(f"{scores.shape[1]} scores a record for {len(names)} leaves and nodes of the tree")
        metrics.refuse_nan(scores)
        under = [{i} for i in range(len(leaves))] + [node.leaves for node in nodes[1:]]  # leaves below each column
        leaf = metrics.top(metrics.ranks(scores[:, : len(leaves)], labels), 1)
        consistent, table = leaf.clone(), []
        for node in nodes:
            inside = torch.isin(labels, torch.tensor(sorted(node.leaves))).nonzero()[:, 0]
            if len(inside):
                right = decided(scores[inside], labels[inside], node.children, under)
                consistent[inside] *= right
                table.append({"node": node.name, "children": len(node.children), "images": len(inside)})
                table[-1]["accuracy"] = float(right.mean())
        dice = random.Random(0)
        cuts = [decided(scores, labels, cut(nodes, len(leaves), dice, self.keep), under) for _ in range(self.cuts)]
        values = {"hca": consistent, "leaf_top1": leaf}
        if cuts:
            values["mta"] = torch.stack(cuts).mean(0)
        found = {k: bootstrap(mean_of(v), len(labels), resamples=self.resamples) for k, v in values.items()}
        sizes = {"images": len(labels), "leaves": len(leaves), "nodes": len(nodes)}
        return Outcome(metrics=found, tables={"per_node": table}, sizes=sizes)

    def options(self) -> dict:
        tree = short_hash(tree_file(self.tree).read_text(encoding="utf-8")) if self.tree else "group"
        return {"tree": tree, "cuts": self.cuts, "keep": self.keep}

    def template_set(self, model, data) -> str:
        return "" if isinstance(model, Predictor) else template_id(*wording(self.templates, data))


def tree_of(path: str, data: Any) -> Tree:
    """The tree by its name or file, or else of the column `group`."""
    if path:
        tree = read_tree(path)
        return restricted(tree, data.class_names) if path == EMOJI else tree
    if "group" not in getattr(data, "columns", ()):
        raise BadData(f'{data.card.name} has no column `group`: give --tree FILE, {{"animals": ["cat", "dog"], ...}}')
    tree: Tree = {}
    for label, group in sorted(set(zip(column(data, "label"), column(data, "group")))):
        tree.setdefault(group, []).append(data.class_names[label])
    return tree


def decided(scores: Tensor, labels: Tensor, children: list[int], under: list[set[int]]) -> Tensor:
    """1.0 where the column that holds the label wins among `children`: [N, columns], [N] -> [N]"""
    place = torch.zeros(max(max(u) for u in under) + 1, dtype=torch.long)
    for k, column_ in enumerate(children):
        place[sorted(under[column_])] = k
    return metrics.top(metrics.ranks(scores[:, children], place[labels]), 1)
