"""The one contract of every system: what it learns, what it minimises, how deep it reads the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from emblema.core.batch import Batch
from emblema.core.card import Card


class Method:
    """A plain object whose fields are hyper-parameters; `repr(method)` is the whole configuration.

    Subclasses are keyword-only dataclasses and define

    - `card`: a literal `Card`,
    - `build(...) -> nn.Module`: what is learnt,
    - `losses(module, batch) -> {name: scalar}`: what is minimised; the loop adds the terms.

    `losses` has no side effect but one: a queue may be pushed after it was read.
    """

    card: ClassVar[Card]

    def build(self, *args: Any) -> nn.Module:
        raise NotImplementedError(f"{type(self).__name__} must define build()")

    def losses(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} must define losses()")

    def backward(self, module: nn.Module, losses: dict[str, Tensor]) -> None:
        """From terms to gradients. A system that projects gradients overrides this."""
        torch.stack([term.float() for term in losses.values()]).sum().backward()

    def after_step(self, module: nn.Module) -> None:
        """Called after each optimiser step: moving averages, bounds and the like."""

    def rate(self, name: str) -> float:
        """The parameter's learning rate as a multiple of `optim.lr`."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Optim:
    """How a method is optimised. The defaults suit small runs; a method overrides what its paper says."""

    algorithm: str = "adamw"  # "adamw", "adam" (decay is part of the gradient) or "sgd"
    lr: float = 1e-3
    weight_decay: float = 0.1  # never on biases, norms, positions, scales (parameters of fewer than 2 axes)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    momentum: float = 0.9  # of sgd
    schedule: str = "cosine"  # a step; "constant"; "epochs": CoOp's; "epochs-squared", "oscillating": see `lr_at`
    warmup: float = 0.05  # of all steps, when below 1; else steps ("epochs": one epoch at 1e-5 when above 0)
    final_lr: float = 0.0  # cosine ends here, as a share of lr
    clip_norm: float | None = 1.0  # of the gradient of all parameters
    epochs: float = 10.0
    steps: int | None = None  # overrides epochs
    batch_size: int = 256  # joint, over all processes
    chunk: int | None = None  # gradient caching: samples a tower sees at once
    ema: float | None = None  # decay of the averaged weights, evaluated and saved in place of the raw ones
    precision: str = "auto"  # "fp32", "bf16", or "auto": bf16 where the hardware has it
    patch_drop: float = 0.0  # share of patches hidden from an image transformer while training

    def total(self, epoch_steps: int) -> int:
        """Steps of a run whose epochs have so many: at least one."""
        return self.steps or max(round(self.epochs * epoch_steps), 1)
