"""An exponential moving average of a module: momentum encoders and teachers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


class EMA(nn.Module):
    """`ema.module` follows `module`: after step n its tensors are d * old + (1 - d) * new, d = decay(n).

    Floating-point buffers (BatchNorm's running statistics) are averaged too; integer ones are copied. The
    average and its step count are in `state_dict`, never get a gradient, and stay in evaluation mode.

    Args:
        module: what to follow; the average starts as a copy of it.
        decay: a constant in [0, 1), or a function of the number of updates so far, e.g. `warm_up(0.999)`.
    """

    updates: Tensor

    def __init__(self, module: nn.Module, decay: float | Callable[[int], float] = 0.999) -> None:
        super().__init__()
        if not callable(decay) and not 0 <= decay < 1:
            raise ValueError(f"EMA(decay={decay}): expected a decay in [0, 1), such as 0.999.")
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.decay = decay
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take one step towards `module`; call it once an optimiser step."""
        n = int(self.updates)
        d = self.decay(n) if callable(self.decay) else self.decay
        new = module.state_dict()
        for name, average in _each_once(self.module).items():
            if average.is_floating_point():
                average.lerp_(new[name].to(average), 1 - d)
            else:
                average.copy_(new[name])
        self.updates += 1

    def train(self, mode: bool = True) -> EMA:
        """The average is never in training mode."""
        return super().train(False)

    def forward(self, *args: object, **options: object) -> object:
        return self.module(*args, **options)


def _each_once(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module; those with several names (tied weights of a one-tower model) under the first."""
    seen: set[int] = set()
    tensors = module.state_dict(keep_vars=True).items()
    return {n: t.detach() for n, t in tensors if id(t) not in seen and not seen.add(id(t))}


def warm_up(limit: float) -> Callable[[int], float]:
    """min(limit, (1 + n) / (10 + n)): follow closely at first (OTTER)."""
    return lambda n: min(limit, (1 + n) / (10 + n))
