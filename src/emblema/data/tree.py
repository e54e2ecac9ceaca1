"""Trees of classes: inner nodes with names, and the cuts that cover every class once.

A tree is JSON, {"animals": {"birds": ["owl", "robin"]}}. The one that ships (`tree.json`) puts what emoji show under
the groups and subgroups of emojibase (MIT), with a table by hand for clothes and the classes of other bundled sets.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emblema.core.errors import BadData
from emblema.data.catalog import FOLDER

Tree = dict[str, Any]  # {name of an inner node: its subtree, or the list of its leaves}
EMOJI = "emoji"  # the name of the tree that ships


@dataclass
class Node:
    """An inner node. Children are columns of the scores: a leaf's number, or the number of leaves + that of a node."""

    name: str
    children: list[int]
    leaves: set[int]


def tree_file(name: str) -> Path:
    """The file of a tree by its path, or of the one that ships by the name "emoji"."""
    return FOLDER / "tree.json" if name == EMOJI else Path(name)


def read_tree(name: str) -> Tree:
    """Raises `BadData` for a file that is missing or no JSON."""
    path = tree_file(name)
    if not path.exists():
        raise BadData(f'no file {path}: give a JSON tree, {{"animals": ["cat", "dog"], ...}}, or the name "{EMOJI}"')
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadData(f"{path} is no JSON: {error}") from None


def restricted(tree: Any, class_names: list[str]) -> Tree:
    """The part of a tree that leads to these classes; a node with one child gives way to it."""
    spelt = {" ".join(name.replace("_", " ").lower().split()): name for name in class_names}

    def below(part: Any) -> Tree:
        kept: Tree = {}
        for name, inside in _children(part):
            if not inside:
                kept |= {spelt[name.lower()]: None} if name.lower() in spelt else {}
                continue
            found = below(inside)
            kept |= found if len(found) == 1 else {name: found} if found else {}
        return kept

    kept = below(tree)
    (only,) = kept.values() if len(kept) == 1 else (None,)
    return only or kept


def flattened(tree: Tree, leaves: list[str]) -> list[Node]:
    """The inner nodes, the root first. Classes that the tree does not name hang on the root.

    Raises `BadData` for leaves that are no class, or come twice.
    """
    number = {name: i for i, name in enumerate(leaves)}
    nodes = [Node("(root)", [], set())]

    def grow(parent: Node, part: Any) -> None:
        for name, below in _children(part):
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


def cut(nodes: list[Node], leaves: int, dice: random.Random, keep: float) -> list[int]:
    """Columns of a random tree cut: an inner node below the root stands for its leaves, or its children do."""

    def below(node: Node) -> Iterator[int]:
        for child in node.children:
            if child < leaves or dice.random() < keep:
                yield child
            else:
                yield from below(nodes[child - leaves + 1])

    return list(below(nodes[0]))


def _children(part: Any) -> Iterator[tuple[str, Any]]:
    """(name, what is below it; nothing for a leaf)."""
    return iter(part.items() if isinstance(part, dict) else ((leaf, None) for leaf in part))
