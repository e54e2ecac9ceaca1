"""SoftCPT: tasks share the network that writes their prompts.

The frozen text tower reads learnt words with a task's name; one linear map turns what it says into the context of all
classes of that task. Data are several tasks when they have a column that says which task a class belongs to.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.batch import Dataset, ImageInput, Level
from emblema.core.card import Card
from emblema.core.errors import BadData
from emblema.core.method import Optim
from emblema.data import catalog
from emblema.parts.prompts import Borrowed, PromptedText
from emblema.transfer.base import Transfer, coop_recipe


@dataclass(kw_only=True)
class SoftCPT(Transfer):
    card = Card(
        name="softcpt",
        title="Prompt Tuning with Soft Context Sharing for Vision-Language Models",
        paper="2208.13474",
        year=2022,
        section="6.3.1 text prompt",
        equation="L = CE over the task's own classes of s z . t(V_k, name_c),  V_k = reshape(P g(U, name of task k))",
        reads=Level.POOLED,
        claim="with few shots, asked task by task, SoftCPT on all tasks is more accurate than CoOp on each task",
        oracle="P with V_k = V: CoOp with V; the loss against a loop over tasks",
        deviations=(
            "tasks are a column of one data set (emblem-objects: its groups), officially data sets",
            "negatives are not subsampled",
            "the words of the task are shared by all tasks (of the four variants, the task-agnostic two)",
        ),
    )
    by: str = "group"  # column that names the task of a class; without it all classes are one task, the data's title
    context_length: int = 16  # M
    task_length: int = 4  # of U
    each: bool = False  # a context for each class, from its own name beside the task's
    class_length: int = 4  # of the words before a class name, with `each`
    optim: Optim = field(default_factory=lambda: coop_recipe())

    def fit(self, vlm, data: Dataset, *rest: Any, **options: Any):
        self._facts = {"tasks": tasks_of(data, self.by), "title": data.card.title}
        return super().fit(vlm, data, *rest, **options)

    def for_classes(self, class_names: Sequence[str], name: str = ""):
        """As always; classes that no task of `fit` has are a task called as the data set `name`."""
        twin = copy.copy(self)
        titles = {card["name"]: card["title"] for card in catalog.cards()}
        twin._facts = self._facts | ({"title": titles.get(name, name)} if name else {})
        return super(SoftCPT, twin).for_classes(class_names, name)

    def build(self, vlm, class_names):
        facts: dict[str, Any] = self._facts
        return Shared(vlm, class_names, [facts["tasks"].get(name, facts["title"]) for name in class_names], self)

    def losses(self, module, batch):
        own = module.task_of == module.task_of[batch.labels][:, None]  # [B, C]
        logits = module(batch.x).masked_fill(~own, -torch.inf)
        return {"cross_entropy": F.cross_entropy(logits, batch.labels)}


class Shared(Borrowed):
    """Class names in contexts that are made of task names."""

    task_of: Tensor  # [C]

    def __init__(self, vlm, class_names, tasks: list[str], system: SoftCPT):
        super().__init__(vlm)
        names = list(dict.fromkeys(tasks))
        self.register_buffer("task_of", torch.tensor([names.index(t) for t in tasks]), persistent=False)
        self.tasks = PromptedText(vlm, names, system.task_length)
        self.classes: Any = PromptedText(vlm, class_names, system.class_length) if system.each else None
        self.prompt: Any = PromptedText(vlm, class_names, system.context_length)
        self.prompt.context = None  # comes from the tasks
        self.shape = (system.context_length, vlm.text.width)  # M, d
        self.project = nn.Linear(vlm.dim * (2 if system.each else 1), self.shape[0] * self.shape[1], bias=False)  # P
        nn.init.normal_(self.project.weight, std=0.02)

    def contexts(self) -> Tensor:
        """[C, M, d], or [M, d] where all classes have the same."""
        said = self.tasks.raw()[self.task_of]  # [C, D]
        if self.classes is not None:
            said = torch.cat([self.classes.raw(), said], -1)  # [C, 2 D]
        elif not self.task_of.any():
            said = said[0]
        return self.project(said).unflatten(-1, self.shape)

    def forward(self, x: ImageInput) -> Tensor:
        return self.vlm.logits(x.pooled, self.prompt(self.contexts()))  # [B, C]


def tasks_of(data: Any, by: str) -> dict[str, str]:
    """Class name -> task, from a column. Raises `BadData` for a class in two tasks."""
    found: dict[str, str] = {}
    if by not in getattr(data, "columns", ()):
        return found
    for label, task in zip(data.labels, data.column(by)):
        if label is None or not task:
            continue
        name = data.class_names[label].strip()
        if found.setdefault(name, str(task)) != str(task):
            raise BadData(
                f"class {name!r} is in two tasks, {found[name]!r} and {task!r}: give each task its own classes"
            )
    return found
