"""First-in-first-out banks: of unit vectors (MoCo's keys, DeCLIP's texts), of whole samples (FIBER's negatives)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.objectives.contrastive import similarity


class FeatureQueue(nn.Module):
    """Holds the last `size` vectors that were pushed, as buffers, so a resumed run continues with it.

    **Read before you push**: a queue that already holds this batch's keys offers the positives as negatives.

    Args:
        size: K, the number of vectors kept.
        dim: D.
        init: "random" starts with K random unit rows (MoCo, DeCLIP), "empty" with none.
        generator: the source of the random rows.
    """

    rows: Tensor
    pointer: Tensor
    filled: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        init: Literal["random", "empty"] = "random",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if size < 1 or init not in ("random", "empty"):
            raise ValueError(f"FeatureQueue(size={size}, init={init!r}): expected size >= 1, init 'random' or 'empty'.")
        self.init = init
        self.register_buffer("rows", F.normalize(torch.randn(size, dim, generator=generator), dim=-1))  # [K, D]
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def __len__(self) -> int:
        """How many rows `read` returns."""
        return len(self.rows) if self.init == "random" else int(self.filled)

    @property
    def warm(self) -> bool:
        """Whether every random row was replaced by a real one."""
        return int(self.filled) == len(self.rows)

    def read(self) -> Tensor:
        """[K, D] (fewer rows while an "empty" queue fills), a copy: a later push does not change it."""
        return self.rows[: len(self)].clone()

    @torch.no_grad()
    def push(self, z: Tensor) -> None:
        """Replace the oldest rows by z [N, D]; any N. Of more than K rows the last K stay."""
        if z.ndim != 2 or z.shape[1] != self.rows.shape[1]:
            raise ValueError(f"push: rows arrived as {tuple(z.shape)}, expected [N, {self.rows.shape[1]}].")
        K = len(self.rows)
        at = (self.pointer + torch.arange(len(z), device=self.rows.device)) % K  # [N]
        self.rows[at[-K:]] = z[-K:].to(self.rows)
        self.pointer.add_(len(z)).remainder_(K)
        self.filled.add_(len(z)).clamp_(max=K)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """The row most similar to each of z: [N, D] -> [N, D]."""
        if not len(self):
            raise ValueError("nearest: the queue is empty. Push features first, or build it with init='random'.")
        rows = self.read()
        return rows[similarity(z, rows).argmax(1)]


class SampleQueue(nn.Module):
    """Holds several tensors of each of the last `size` samples, as buffers: features beside what they were made of.

    It starts empty. **Read before you push.**

    Args:
        size: K, the number of samples kept.
        like: name -> one sample of a tensor, whose shape and dtype count.
    """

    pointer: Tensor
    filled: Tensor

    def __init__(self, size: int, like: dict[str, Tensor]) -> None:
        super().__init__()
        if size < 1 or not like:
            raise ValueError(f"SampleQueue(size={size}, like={list(like)}): expected size >= 1 and a tensor or more.")
        self.size, self.names = size, tuple(like)
        for name, one in like.items():
            self.register_buffer(name, one.new_zeros(size, *one.shape))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def __len__(self) -> int:
        return int(self.filled)

    def read(self) -> dict[str, Tensor]:
        """name -> [filled, ...], copies: a later push does not change them."""
        return {name: getattr(self, name)[: len(self)].clone() for name in self.names}

    @torch.no_grad()
    def push(self, **samples: Tensor) -> None:
        """Replace the oldest samples by N new ones, each tensor [N, ...]. Of more than K the last K stay."""
        found = {name: tuple(rows.shape) for name, rows in samples.items()}
        N = len(next(iter(samples.values())))
        expected = {name: (N, *getattr(self, name).shape[1:]) for name in self.names}
        if found != expected:
            raise ValueError(f"push: samples arrived as {found}, expected {expected}.")
        at = (self.pointer + torch.arange(N, device=self.pointer.device)) % self.size  # [N]
        for name, rows in samples.items():
            bank = getattr(self, name)
            bank[at[-self.size :]] = rows[-self.size :].to(bank)
        self.pointer.add_(N).remainder_(self.size)
        self.filled.add_(N).clamp_(max=self.size)
