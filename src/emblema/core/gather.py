"""See the joint batch of all processes; on one process every function here is the identity.

The convention of every loss in `emblema.objectives`: each process scores **its own rows against all columns**
and returns the mean over its own rows. DDP averages gradients over processes, so the averaged gradient (logit
scale included) is that of the mean over the joint batch on one process. The backward of `gather` is what
makes this true: it *sums* over processes what each of them wants of a row, and hands the sum to the process
that owns the row.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """The number of processes; 1 when `torch.distributed` was not started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The index of this process, 0 to `world_size() - 1`."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(x: Tensor) -> Tensor:
    """Stack the rows of every process in rank order, with gradient: [b, ...] -> [world_size * b, ...].

    Every process must call it, forward and backward, in the same order. Under `torch.no_grad` only values
    travel.

    Raises:
        ValueError: the processes hold different numbers of rows.
    """
    if world_size() == 1:
        return x
    sizes = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(x)], device=x.device))
    rows = [int(size) for size in sizes]
    if len(set(rows)) > 1:
        raise ValueError(
            f"gather: the processes hold {rows} rows, expected the same number on each. "
            "Use drop_last=True, or pad the last batch, so that no process runs short."
        )
    return _Gather.apply(x)  # type: ignore[no-any-return]


def gather_objects(x: Any) -> list[Any]:
    """The small Python value `x` of every process, in rank order."""
    if world_size() == 1:
        return [x]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, x)
    return values


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)  # [W*b, ...]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)  # what all processes want of all rows
        return total.chunk(world_size())[rank()]  # [b, ...]  of mine
