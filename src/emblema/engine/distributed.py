"""Many processes: start, share, average. All of it is the identity on one process.

Each process computes the loss of its own rows against the joint batch (`core/gather.py`), so the *average* of the
processes' gradients is the gradient of one process with the joint batch. The average is taken once after backward,
in a few large pieces: it works for modules that are never called as a whole, for frozen parts and for cached
gradients, where the hooks of DDP do not. Parameters that are sharded by FSDP2 (DTensor) are left alone, FSDP2
averages them itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from emblema.core.errors import EmblemaError
from emblema.core.gather import gather_objects, rank, world_size

BUCKET = 32 * 2**20  # numbers averaged at once


def device() -> torch.device:
    """This process's device: its own GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


@contextmanager
def processes() -> Iterator[tuple[int, int]]:
    """Join the processes that `torchrun` started and leave them at the end: (rank, world size).

    Without `torchrun`, and inside a group that exists already, nothing is started or ended.
    """
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield rank(), world_size()
        return
    # Imported later (torch.utils.checkpoint does that), it keeps the group as a default argument: then the group's
    # threads outlive `destroy_process_group`, and now and then they abort the interpreter's exit.
    import torch.distributed.nn.functional

    where = device()
    if where.type == "cuda":
        torch.cuda.set_device(where)
    dist.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=timedelta(hours=2))
    try:
        yield rank(), world_size()
    finally:
        dist.destroy_process_group()


def share_weights(module: nn.Module) -> None:
    """All processes start from the parameters and buffers of the first."""
    if world_size() == 1:
        return
    for tensor in (*module.parameters(), *module.buffers()):
        dist.broadcast(tensor.detach(), 0)


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Each gradient becomes its mean over the processes; one that no process has stays None."""
    if world_size() == 1:
        return
    own = [p for p in parameters if not hasattr(p, "placements")]  # not sharded
    had = torch.tensor([p.grad is not None for p in own], dtype=torch.float32, device=own[0].device)
    dist.all_reduce(had)
    used = [p for p, n in zip(own, had.tolist()) if n]
    for bucket in _buckets(used):
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket])
        dist.all_reduce(flat)
        flat /= world_size()
        at = 0
        for p in bucket:
            p.grad = flat[at : at + p.numel()].view_as(p)
            at += p.numel()


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Consecutive parameters of one dtype, about `BUCKET` numbers each."""
    bucket: list[nn.Parameter] = []
    for p in parameters:
        full = bucket and (sum(q.numel() for q in bucket) + p.numel() > BUCKET or p.dtype != bucket[0].dtype)
        if full:
            yield bucket
            bucket = []
        bucket.append(p)
    if bucket:
        yield bucket


def every(value: Any) -> list[Any]:
    """A small value of each process, in order; all processes must ask."""
    return gather_objects(value)


def mean_of(values: dict[str, float]) -> dict[str, float]:
    """Each value as its mean over the processes."""
    if world_size() == 1:
        return values
    dicts = every(values)
    return {k: sum(d[k] for d in dicts) / len(dicts) for k in values}


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


class _SumOverProcesses(torch.autograd.Function):
    """Sum over the processes, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def joint_batch_norm(module: nn.Module) -> nn.Module:
    """Batch normalisation takes its mean and variance over the joint batch, on CPUs too (in place).

    Parameters, buffers and their names do not change; on one process nothing does.
    """
    if world_size() > 1:
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and not isinstance(part, _JointBatchNorm):
                part.__class__ = type("Joint" + type(part).__name__, (_JointBatchNorm, type(part)), {})
    return module


class _JointBatchNorm(nn.modules.batchnorm._BatchNorm):
    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        if self.momentum is None:
            raise EmblemaError("batch normalisation with momentum=None does not run on several processes; set one")
        with torch.autocast(input.device.type, enabled=False):
            x = input.float()
            axes = [0, *range(2, x.dim())]
            count = x.numel() // x.shape[1] * world_size()
            shape = [1, -1] + [1] * (x.dim() - 2)
            mean = _SumOverProcesses.apply(x.sum(axes)) / count  # [C]
            centred = x - mean.view(shape)
            variance = _SumOverProcesses.apply(centred.square().sum(axes)) / count  # [C]
            if self.track_running_stats:
                assert self.running_mean is not None and self.running_var is not None
                with torch.no_grad():
                    self.running_mean.lerp_(mean, self.momentum)
                    self.running_var.lerp_(variance * count / (count - 1), self.momentum)
                    self.num_batches_tracked += 1  # type: ignore[operator]
            x = centred * (variance + self.eps).rsqrt().view(shape)
            if self.affine:
                x = x * self.weight.view(shape) + self.bias.view(shape)
        return x.to(input.dtype)
