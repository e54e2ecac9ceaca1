"""Hierarchical consistency: is the model right at every level of a tree of classes, not at its leaves alone?

ProTeCt (2306.02240): a picture is consistent when its leaf is right among all leaves and, at each inner node above
it, the right child wins among the node's children (HCA). A tree cut is a set of nodes that covers every leaf once;
MTA is the mean accuracy over random cuts, each inner node kept or replaced by its children by a coin.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emblema.core.card import TaskCard
from emblema.core.errors import BadData
from emblema.tasks import metrics
from emblema.tasks.base import Outcome, Predictor, Renamed, Task, column, labels_of
from emblema.tasks.protocols import short_hash, template_id
from emblema.tasks.statistics import bootstrap, mean_of
from emblema.tasks.wording import scores_of, wording

Tree = dict[str, Any]  # {name of an inner node: its subtree, or the list of its leaves}


@dataclass(kw_only=True)
class Hierarchy(Task):
    card = TaskCard(
        name="hierarchy",
        title="Hierarchical consistency",
        section="3.4 classification",
        metric="hca",
        needs=("labels",),
    )
    tree: str = ""  # a JSON file {"animals": {"birds": ["owl", "robin"]}}; default: the data's column `group`
    cuts: int = 25  # random tree cuts
    keep: float = 0.5  # probability that a cut keeps an inner node
    templates: str = ""  # a template set, or a text file with a template a line; default: the data set's own
    resamples: int = 1000  # of the bootstrap

    def run(self, model, data) -> Outcome:
        labels, leaves = labels_of(data), list(data.class_names)
        nodes = flattened(read_tree(self.tree, data), leaves)
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
        tree = short_hash(Path(self.tree).read_text(encoding="utf-8")) if self.tree else "group"
        return {"tree": tree, "cuts": self.cuts, "keep": self.keep}

    def template_set(self, model, data) -> str:
        return "" if isinstance(model, Predictor) else template_id(*wording(self.templates, data))


@dataclass
class Node:
    """An inner node. Children are columns of the scores: a leaf's number, or the number of leaves + that of a node."""

    name: str
    children: list[int]
    leaves: set[int]


def read_tree(path: str, data: Any) -> Tree:
    if path:
        if not Path(path).exists():
            raise BadData(f'no file {path}: give a JSON tree, {{"animals": ["cat", "dog"], ...}}')
        try:
            return json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise BadData(f"{path} is no JSON: {error}") from None
    if "group" not in getattr(data, "columns", ()):
        raise BadData(f'{data.card.name} has no column `group`: give --tree FILE, {{"animals": ["cat", "dog"], ...}}')
    tree: Tree = {}
    for label, group in sorted(set(zip(column(data, "label"), column(data, "group")))):
        tree.setdefault(group, []).append(data.class_names[label])
    return tree


def flattened(tree: Tree, leaves: list[str]) -> list[Node]:
    """The inner nodes, the root first. Classes that the tree does not name hang on the root.

    Raises `BadData` for leaves that are no class, or come twice.
    """
    number = {name: i for i, name in enumerate(leaves)}
    nodes = [Node("(root)", [], set())]

    def grow(parent: Node, part: Any) -> None:
        for name, below in part.items() if isinstance(part, dict) else ((leaf, None) for leaf in part):
            if not below:
                if name not in number:
                    raise BadData(f"the tree's leaf {name!r} is no class; classes: {', '.join(leaves[:5])}, ...")
                if number[name] in nodes[0].leaves:
                    raise BadData(f"the class {name!r} comes twice in the tree: it needs one parent")
                parent.children.append(number[name])
                nodes[0].leaves.add(number[name])
                parent.leaves.add(number[name])
            else:
                node = Node(name, [], set())
                nodes.append(node)
                parent.children.append(len(leaves) + len(nodes) - 2)  # the root is no column
                grow(node, below)
                parent.leaves |= node.leaves

    grow(nodes[0], tree)
    for missing in sorted(set(range(len(leaves))) - nodes[0].leaves):
        nodes[0].children.append(missing)
        nodes[0].leaves.add(missing)
    return nodes


def decided(scores: Tensor, labels: Tensor, children: list[int], under: list[set[int]]) -> Tensor:
    """1.0 where the column that holds the label wins among `children`: [N, columns], [N] -> [N]"""
    place = torch.zeros(max(max(u) for u in under) + 1, dtype=torch.long)
    for k, column_ in enumerate(children):
        place[sorted(under[column_])] = k
    return metrics.top(metrics.ranks(scores[:, children], place[labels]), 1)


def cut(nodes: list[Node], leaves: int, dice: random.Random, keep: float) -> list[int]:
    """Columns of a random tree cut: an inner node below the root stands for its leaves, or its children do."""

    def below(node: Node) -> Iterator[int]:
        for child in node.children:
            if child < leaves or dice.random() < keep:
                yield child
            else:
                yield from below(nodes[child - leaves + 1])

    return list(below(nodes[0]))
