"""The one training loop.

    for each step:   learning rate -> gradients of the sum of the terms -> mean over processes -> clip -> optimiser
                     -> what the method does after a step -> moving average

Who calls it decides on data, logs and checkpoints (`engine/train.py`). A step depends on the weights, the state of
the optimiser and the step's number only, so a run resumes at any step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from emblema.core.batch import Batch
from emblema.core.gather import rank, world_size
from emblema.core.method import Method, Optim
from emblema.engine import diagnose, distributed, seed
from emblema.engine.grad_cache import cached_gradients
from emblema.engine.precision import autocast

WARMUP_LR = 1e-5  # of the "epochs" schedule
Gradients = Callable[[Method, nn.Module, Batch], dict[str, Tensor]]


@dataclass
class Step:
    """What a step did. Values are means over the processes."""

    number: int  # steps done, this one included
    losses: dict[str, float]
    lr: float
    grad_norm: float  # before clipping
    pairs: int  # of the joint batch
    seconds: float
    wait: float  # seconds of it spent waiting for data
    duplicates: float  # share of texts that repeat another text of the process's batch
    without_gradient: list[str] = field(default_factory=list)

    @property
    def loss(self) -> float:
        return sum(self.losses.values())


class State:
    """What changes during a run, with the weights: everything that a checkpoint holds."""

    def __init__(self, module: nn.Module, optim: Optim, rate: Callable[[str], float] = lambda name: 1.0):
        self.module = module
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("no parameter asks for a gradient: the method has nothing to learn (is the model frozen?)")
        self.optimiser = optimiser(module, optim, rate)
        self.ema = None if optim.ema is None else _average(module, optim.ema)


def optimise(
    method: Method,
    module: nn.Module,
    batches: Iterable[Batch],
    optim: Optim,
    *,
    total_steps: int,
    start: int = 0,
    epoch_steps: int | None = None,
    random_seed: int = 0,
    state: State | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> nn.Module:
    """Minimise the sum of `method.losses` over `batches`, which begin at step `start`; returns `module`.

    Only parameters that ask for a gradient change. `epoch_steps` is the length of an epoch, for schedules that move
    once an epoch. `on_step` is called after each step.
    """
    state = state or State(module, optim, method.rate)
    where = state.parameters[0].device
    gradients = _gradients(optim, where)
    module.train()
    _drop_patches(module, optim.patch_drop)
    began = perf_counter()
    for number, batch in zip(range(start, total_steps), batches):
        wait = perf_counter() - began
        batch.progress = number / total_steps
        lr = lr_at(number, total_steps, optim, epoch_steps)
        for group in state.optimiser.param_groups:
            group["lr"] = lr * group["rate"]
        state.optimiser.zero_grad()
        replay = diagnose.Replay(random_seed, number, batch)
        with seed.forked(random_seed, "step", number, rank()):
            losses = gradients(method, module, batch)
        distributed.average_gradients(state.parameters)
        norm = total_norm(state.parameters)
        terms = distributed.mean_of({k: v.item() for k, v in losses.items()})
        if not all(map(math.isfinite, (norm.item(), *terms.values()))):
            raise diagnose.not_finite(method, module, replay, terms, norm.item(), autocast(optim.precision, where))
        if optim.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(state.parameters, optim.clip_norm, norm)
        state.optimiser.step()
        method.after_step(module)
        if state.ema is not None:
            state.ema.update(module)
        if on_step is not None:
            now = perf_counter()
            repeated = 1 - len(set(batch.texts)) / len(batch) if batch.texts else 0.0
            step = Step(number + 1, terms, lr, norm.item(), len(batch) * world_size(), now - began, wait, repeated)
            if number == start:
                step.without_gradient = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
            on_step(step)
        began = perf_counter()
    _drop_patches(module, 0.0)
    return module


def _gradients(optim: Optim, where: torch.device) -> Gradients:
    """How the gradients of a batch are made: at once, or cached in chunks."""
    if optim.chunk is not None:
        return cached_gradients(optim.chunk, lambda: autocast(optim.precision, where))

    def at_once(method: Method, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        with autocast(optim.precision, where):
            losses = method.losses(module, batch)
        method.backward(module, losses)
        return losses

    return at_once


def lr_at(step: int, total: int, optim: Optim, epoch_steps: int | None = None) -> float:
    """The learning rate of a step, counted from 0.

    "cosine": linear warm-up, then a cosine from `lr` down to `final_lr * lr`. "epochs": the schedule that CoOp's family
    was published with, one epoch at 1e-5 and then 0.5 lr (1 + cos(pi (e - 2) / E)) in epoch e = 2..E.
    """
    if optim.schedule == "constant":
        return optim.lr
    if optim.schedule == "epochs":
        epoch, epochs = step // (epoch_steps or total), max(total // (epoch_steps or total), 1)  # epoch counts from 0
        if epoch == 0 and optim.warmup and epochs > 1:
            return min(WARMUP_LR, optim.lr)
        return optim.lr * 0.5 * (1 + math.cos(math.pi * max(epoch - 1, 0) / epochs))
    if optim.schedule != "cosine":
        raise ValueError(f'schedule={optim.schedule!r}: use "cosine", "epochs" or "constant"')
    warmup = round(optim.warmup * total) if optim.warmup < 1 else int(optim.warmup)
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    done = (step - warmup) / max(total - warmup, 1)  # 0..1
    return optim.lr * (optim.final_lr + (1 - optim.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay is for matrices and kernels: not for biases, norms, scales (fewer than 2 axes) nor positions."""
    return parameter.ndim >= 2 and "position" not in name


def optimiser(
    module: nn.Module, optim: Optim, rate: Callable[[str], float] = lambda name: 1.0
) -> torch.optim.Optimizer:
    """Over the parameters that ask for a gradient; a group for each pair of (weight decay or none, rate)."""
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((decays(name, parameter), rate(name)), []).append(parameter)
    given = [
        {"params": parameters, "weight_decay": optim.weight_decay if decayed else 0.0, "rate": share}
        for (decayed, share), parameters in sorted(groups.items(), key=lambda pair: (not pair[0][0], -pair[0][1]))
    ]
    fused = all(p.device.type in ("cpu", "cuda") for group in given for p in group["params"])
    if optim.algorithm == "sgd":
        return torch.optim.SGD(given, lr=optim.lr, momentum=optim.momentum)  # fused, it refuses parameters not used
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    if optim.algorithm not in kinds:
        raise ValueError(f'algorithm={optim.algorithm!r}: use "adamw", "adam" or "sgd"')
    return kinds[optim.algorithm](given, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=fused)


def total_norm(parameters: list[nn.Parameter]) -> Tensor:
    """The norm of all gradients as one vector."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def _average(module: nn.Module, decay: float) -> Any:
    from emblema.parts.ema import EMA

    return EMA(module, decay)


def _drop_patches(module: nn.Module, share: float) -> None:
    """Image transformers hide this share of their patches while they train."""
    towers = [m for m in module.modules() if hasattr(m, "patch_drop")]
    if share and not towers:
        raise ValueError(f"patch_drop={share} needs an image transformer; this model has none. Set it to 0.")
    for tower in towers:
        tower.patch_drop = share  # type: ignore[assignment]
