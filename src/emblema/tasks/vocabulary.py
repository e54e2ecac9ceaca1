"""Which classes compete in a dense measurement, and which are novel: as the data mark them, or by a named split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emblema.core.boxes import NOTHING
from emblema.core.errors import BadData

GROUPS = {"r": "rare", "c": "common", "f": "frequent"}  # LVIS's
# COCO 2017, 48 base and 17 novel classes (Bansal et al. 2018); the other 15 are left out
OV_COCO = (
    ("person", "bicycle", "car", "motorcycle", "train", "truck", "boat", "bench", "bird", "horse", "sheep", "bear",
     "zebra", "giraffe", "backpack", "handbag", "suitcase", "frisbee", "skis", "kite", "surfboard", "bottle", "fork",
     "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "pizza", "donut", "chair", "bed",
     "toilet", "tv", "laptop", "mouse", "remote", "microwave", "oven", "toaster", "refrigerator", "book", "clock",
     "vase", "toothbrush"),
    ("airplane", "bus", "cat", "dog", "cow", "elephant", "umbrella", "tie", "snowboard", "skateboard", "cup", "knife",
     "cake", "couch", "keyboard", "sink", "scissors"),
)  # fmt: skip
SPLITS: dict[str, tuple[Sequence[str] | None, Sequence[str]]] = {  # (base, novel); base None: all others
    "ov-coco": OV_COCO,
    "voc-15-5": (None, ("potted plant", "sheep", "sofa", "train", "tv monitor")),
}
_ALIASES = {"pottedplant": "potted plant", "tvmonitor": "tv monitor", "tv": "tv monitor", "television": "tv monitor"}


@dataclass(frozen=True)
class Vocabulary:
    """The names that compete, and how the data's labels map to them."""

    names: list[str]
    number: Tensor  # [256 or more] label of the data -> number in `names`; 255 for classes that do not compete
    novel: Tensor | None  # [C] bool; None where nothing is novel
    groups: dict[str, Tensor]  # "rare", "common", "frequent" -> [C] bool
    background: int | None  # the data's label of "background", which is not in `names`

    def of_novel(self) -> dict[str, Tensor]:
        return {} if self.novel is None else {"base": ~self.novel, "novel": self.novel}


def vocabulary(data: Any, split: str = "") -> Vocabulary:
    """From a data set with `class_names`.

    `split` is one of `SPLITS`, or the novel classes' names with commas; default: those that the data mark as novel.
    """
    names = list(data.class_names)
    if not names:
        raise BadData(f"{data.card.name} has no class names: dense measurements are of named classes")
    background = next((i for i, name in enumerate(names) if name.lower() == "background"), None)
    base, novel = _split(data, names, split)
    kept = [i for i, name in enumerate(names) if i != background and (base is None or name in base or name in novel)]
    number = torch.full((max(256, len(names) + 1),), NOTHING)
    number[kept] = torch.arange(len(kept))
    chosen = [names[i] for i in kept]
    is_novel = torch.tensor([name in novel for name in chosen], dtype=torch.bool)
    facts = getattr(data, "class_facts", {})
    frequency = [facts.get(name, {}).get("frequency") for name in chosen]
    groups = {
        long: torch.tensor([f == short for f in frequency]) for short, long in GROUPS.items() if short in frequency
    }
    return Vocabulary(chosen, number, is_novel if is_novel.any() else None, groups, background)


def _split(data: Any, names: Sequence[str], split: str) -> tuple[set[str] | None, set[str]]:
    """(base names or None for all others, novel names), as the data spell them."""
    if not split:
        return None, set(data.novel_classes()) if hasattr(data, "novel_classes") else set()
    spelt = {_plain(name): name for name in names}
    base, novel = SPLITS.get(split, (None, [part.strip() for part in split.split(",")]))
    if missing := [name for name in (*(base or ()), *novel) if _plain(name) not in spelt]:
        raise BadData(
            f"the split {split!r} has classes that {data.card.name} has not: {', '.join(missing[:5])}. Give a split of "
            f"these data ({', '.join(SPLITS)}), or names of novel classes with commas"
        )
    return None if base is None else {spelt[_plain(n)] for n in base}, {spelt[_plain(n)] for n in novel}


def _plain(name: str) -> str:
    name = name.lower().replace("_", " ").replace("-", " ")
    return _ALIASES.get(name.replace(" ", ""), name)
