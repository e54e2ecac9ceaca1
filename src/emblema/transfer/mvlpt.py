"""MVLPT: prompts learnt on many tasks at once are where the prompts of a new task begin.

Fit it on several data sets as one (`tasks` says how many classes each has) and save it; then fit it on the target with
`source` set to that folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.batch import Level
from emblema.core.card import Card
from emblema.core.errors import BadCheckpoint, BadData
from emblema.core.method import Optim
from emblema.parts.two_sided import United
from emblema.transfer.base import Transfer, coop_recipe


@dataclass(kw_only=True)
class MVLPT(Transfer):
    card = Card(
        name="mvlpt",
        title="Multitask Vision-Language Prompt Tuning",
        paper="2211.11720",
        year=2022,
        section="6.3.1 text-visual prompt",
        equation="theta_0 = argmin sum_tasks CE(s f(x; U_v) . g(U_t, name_c), y); then the target from theta_0",
        reads=Level.EMBEDDED,
        claim="with 1 shot a class, prompts that begin from a related source beat prompts that begin at random",
        oracle="one task and no image prompts: CoOp; logits of other tasks are 0; the source's prompts exactly",
        deviations=(
            "classes of other tasks get a logit of 0 as in the code, so they still count in the softmax",
            "trained on stored views (the evaluation view by default), not on fresh crops",
            "image prompts of layer 0 pass the norm before it, officially they join behind it",
            "no choice of the best epoch by validation pictures: the last counts",
        ),
    )
    context_length: int = 4  # 16 where the image has no prompts
    image_length: int = 4  # in each layer; 0: words alone
    depth: int = 12
    joint: int = 128  # width of the block that unites the two; 0: none
    layout: str = "middle"
    tasks: tuple[int, ...] = ()  # numbers of classes of the tasks, in the order of the classes; empty: one task
    source: str = ""  # folder of a fitted mvlpt to begin from
    optim: Optim = field(default_factory=lambda: coop_recipe(epochs=200.0))

    def build(self, vlm, class_names):
        united = self.joint if self.image_length and self.context_length else 0
        module = United(
            vlm,
            class_names,
            self.context_length,
            self.image_length,
            depth=self.depth if self.image_length else 0,
            joint=united,
            layout=self.layout,
        )
        bound = (6 / (3 * patch_size(vlm) ** 2 + vlm.image.width)) ** 0.5
        nn.init.uniform_(module.image, -bound, bound)
        return module

    def losses(self, module, batch: Any):
        logits = module(batch.x)
        if self.tasks:
            logits = logits * same_task(batch.labels, self.tasks)
        return {"cross_entropy": F.cross_entropy(logits, batch.labels)}

    def check(self, train):
        super().check(train)
        if self.tasks and sum(self.tasks) != len(train.class_names):
            raise BadData(f"tasks={self.tasks} are {sum(self.tasks)} classes, the data have {len(train.class_names)}")

    def learn(self, module, train, on_step=None):
        if self.source:
            begin_from(module, Path(self.source))
        super().learn(module, train, on_step)


def same_task(labels: Tensor, tasks: tuple[int, ...]) -> Tensor:
    """1 for the classes of a label's own task, 0 for others: [B, C]."""
    task = torch.repeat_interleave(torch.arange(len(tasks)), torch.tensor(tasks))  # [C]
    return (task[labels][:, None] == task).float()


def begin_from(module: nn.Module, folder: Path) -> None:
    """Copy the prompts of a fitted system. Raises `BadCheckpoint` when they are not those of these settings."""
    from safetensors.torch import load_file

    if not (folder / "learnt.safetensors").exists():
        raise BadCheckpoint(f"source={folder} holds no fitted system: expected learnt.safetensors in it")
    state = load_file(folder / "learnt.safetensors")
    for name, parameter in module.named_parameters():
        if name not in state or state[name].shape != parameter.shape:
            raise BadCheckpoint(
                f"source={folder} has {name} of shape {tuple(state[name].shape) if name in state else None}, these "
                f"settings need {tuple(parameter.shape)}: fit both on the same model with the same lengths and depth"
            )
        parameter.data.copy_(state[name])


def patch_size(vlm: Any) -> int:
    return getattr(getattr(vlm.image, "config", None), "patch_size", 16)
