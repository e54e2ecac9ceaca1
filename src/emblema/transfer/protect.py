"""ProTeCt: a prompt that names leaves of a class tree should name what is above them too.

Each step classifies among the labels of a random cut of the tree and, at every inner node, among the node's children.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from emblema.core.batch import Level
from emblema.core.card import Card
from emblema.core.errors import BadData
from emblema.core.method import Optim
from emblema.data.tree import EMOJI, cut, flattened, read_tree, restricted
from emblema.engine.inputs import Inputs
from emblema.parts.prompts import PromptClassifier, PromptedText
from emblema.transfer.base import Transfer, coop_recipe


@dataclass(kw_only=True)
class ProTeCt(Transfer):
    card = Card(
        name="protect",
        title="ProTeCt: Prompt Tuning for Taxonomic Open Set Classification",
        paper="2306.02240",
        year=2024,
        section="6.3.1 text prompt",
        equation="L = CE over a random tree cut + lambda mean_{nodes n} CE over the children of n",
        reads=Level.POOLED,
        claim="consistency over the tree (HCA) is higher with both terms than with neither, which is CoOp",
        oracle="lambda = beta = 0: CoOp; a flat tree: both terms are plain cross-entropy; the node term against a loop",
        deviations=(
            "the tree that ships is that of emoji (groups of emojibase) the paper has CIFAR-100, SUN and ImageNet",
            'a cosine once an epoch; the official one moves every step and so oscillates: schedule="oscillating"',
            "all nodes are encoded once a step and indexed; the official loop runs the model for each node",
            "classes that the tree does not name hang on its root",
        ),
    )
    tree: str = EMOJI  # a JSON file {"animals": {"birds": ["owl", "robin"]}}, or "emoji"
    context_length: int = 16  # M, when no words are given
    words: str = ""
    weight: float = 0.5  # lambda
    drop: float = 0.1  # beta: how often an inner node of the cut stands for all below it
    optim: Optim = field(
        default_factory=lambda: coop_recipe(lr=0.02, momentum=0.0, weight_decay=0.0, batch_size=128, epochs=200.0)
    )

    def build(self, vlm, class_names):
        return PromptClassifier(vlm, class_names, self.context_length, words=self.words)

    def learn(self, module, train: Inputs | None, on_step=None):
        assert train is not None
        leaves = train.class_names
        tree = restricted(read_tree(self.tree), leaves)
        if not tree and self.tree != EMOJI:
            raise BadData(f"{self.tree} names none of the {len(leaves)} classes, e.g. {leaves[0]!r}: check its leaves")
        module.nodes = flattened(tree, leaves)
        names = [*leaves, *(node.name for node in module.nodes[1:])]
        module.all = PromptedText(module.vlm, names, self.context_length, words=self.words)
        module.all.context = module.prompt.context  # the same words
        super().learn(module, train, on_step)
        module.all = module.nodes = None

    def losses(self, module, batch):
        leaves, nodes, y = len(module.prompt.names), module.nodes, batch.labels
        logits = module.vlm.logits(batch.x.pooled, module.all())  # [B, C + nodes]
        under = [{i} for i in range(leaves)] + [node.leaves for node in nodes[1:]]  # classes below each column
        dice = random.Random(int(torch.randint(2**31, (), generator=batch.generator)))
        columns = cut(nodes, leaves, dice, self.drop)
        terms = {"cut": F.cross_entropy(logits[:, columns], places(columns, under, leaves)[y])}
        if self.weight:
            each = [among(logits, y, node.children, places(node.children, under, leaves)) for node in nodes]
            terms["nodes"] = self.weight * torch.stack([term for term in each if term is not None]).mean()
        return terms


def places(columns: list[int], under: list[set[int]], leaves: int) -> Tensor:
    """Which of the columns each class is below, -1 where none: [C]."""
    place = torch.full((leaves,), -1)
    for i, column in enumerate(columns):
        place[sorted(under[column])] = i
    return place


def among(logits: Tensor, labels: Tensor, children: list[int], place: Tensor) -> Tensor | None:
    """Cross-entropy over the children of a node, of the pictures whose class is below it; None without any."""
    target = place[labels]
    inside = target >= 0
    return F.cross_entropy(logits[inside][:, children], target[inside]) if inside.any() else None
