"""A sequence that knows where things are: the door for prompts and masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Embedded tokens of a batch of images or texts.

    Every operation returns new `Tokens` in which all positions are still right: a prompt
    inserted before the patches moves `first_patch`, one inserted before [EOT] moves `pool_at`.
    """

    x: Tensor  # [B, L, D]
    pool_at: Tensor  # [B]  position that is pooled: [CLS] or [EOT]
    first_patch: int | None = None  # images only
    grid: tuple[int, int] | None = None  # (H, W) of the patches
    length: Tensor | None = None  # [B]  real tokens of each row (texts); None: all are real
    visible: Tensor | None = None  # [L, L] bool, True where row may read column; None: no extra rule
    shared: int = 0  # leading positions that are the same in all rows (a causal tower computes them once)
    beside: Tensor | None = None  # [B, K]  goes round the layers to the end of the tower

    def __len__(self) -> int:
        return len(self.x)

    def with_x(self, x: Tensor) -> Tokens:
        """The same positions with other vectors [B, L, D]."""
        return replace(self, x=x)

    def insert(self, prompt: Tensor, at: int | None, *, read_only: bool = False) -> Tokens:
        """Put `prompt` [n, D] or [B|1, n, D] before position `at` (None: at the end).

        `read_only` prompts read the other tokens but are not read by them.
        """
        prompt = prompt if prompt.dim() == 3 else prompt[None]
        batch, length, width = self.x.shape
        if prompt.shape[-1] != width or len(prompt) not in (1, batch):
            raise ValueError(
                f"a prompt of shape {tuple(prompt.shape)} cannot join tokens of shape {tuple(self.x.shape)}: "
                f"expected [n, {width}], [1, n, {width}] or [{batch}, n, {width}]"
            )
        n, at = prompt.shape[1], length if at is None else at
        rows = prompt.to(self.x.dtype).expand(batch, -1, -1)
        x = torch.cat([self.x[:, :at], rows, self.x[:, at:]], 1)  # [B, L + n, D]
        moved = self.first_patch
        if moved is not None and at <= moved:
            moved += n
        elif moved is not None and self.grid is not None and at < moved + self.grid[0] * self.grid[1]:
            raise ValueError(f"position {at} is between the patches: insert before {moved} or at the end")
        if self.length is not None and at > int(self.length.min()):
            raise ValueError(
                f"position {at} is behind the end of the shortest text ({int(self.length.min())} tokens): a prompt "
                "there would join its padding. Insert it inside the text, or encode texts of one length together"
            )
        visible = self._visible_with(n, at) if self.visible is not None or read_only else None
        if visible is not None:
            mine = torch.zeros(length + n, dtype=torch.bool, device=x.device)
            mine[at : at + n] = True
            if read_only:
                visible[~mine, at : at + n] = False
            else:  # reads what all may read: what it told the others would else betray read-only prompts
                visible[at : at + n] = visible.all(0)
        joined = at == self.shared or at < self.shared
        same = len(prompt) == 1 and joined
        return replace(
            self,
            x=x,
            pool_at=self.pool_at + n * (self.pool_at >= at),
            first_patch=moved,
            length=None if self.length is None else self.length + n,
            visible=visible,
            shared=self.shared + n if same else min(self.shared, at),
        )

    def insert_each(self, prompt: Tensor, at: Tensor) -> Tokens:
        """Put `prompt` [n, D] or [B|1, n, D] before position `at` [B] of each row (behind names of unlike length)."""
        prompt = prompt if prompt.dim() == 3 else prompt[None]
        if self.visible is not None or self.grid is not None:
            raise ValueError("insert_each is for texts without read-only prompts: use insert, which has one position")
        n, length = prompt.shape[1], self.x.shape[1]
        rows = prompt.to(self.x.dtype).expand(self.x.shape[0], -1, -1)
        steps, at = torch.arange(length + n, device=self.x.device), at[:, None]  # [L + n], [B, 1]
        prompted = torch.where(steps < at + n, length + steps - at, steps - n)
        source = torch.where(steps < at, steps, prompted)  # [B, L + n] into [x; prompt]
        x = torch.cat([self.x, rows], 1).gather(1, source[..., None].expand(-1, -1, self.x.shape[-1]))
        return replace(
            self,
            x=x,
            pool_at=self.pool_at + n * (self.pool_at >= at[:, 0]),
            length=None if self.length is None else self.length + n,
            shared=min(self.shared, int(at.min())),
        )

    def rows(self, start: int, stop: int) -> Tokens:
        """The rows start..stop."""
        length = None if self.length is None else self.length[start:stop]
        beside = None if self.beside is None else self.beside[start:stop]
        return replace(self, x=self.x[start:stop], pool_at=self.pool_at[start:stop], length=length, beside=beside)

    def swap(self, prompt: Tensor, at: int | None) -> Tokens:
        """Overwrite the positions from `at` (None: the last ones) with `prompt` [n, D] or [B|1, n, D]."""
        prompt = prompt if prompt.dim() == 3 else prompt[None]
        n = prompt.shape[1]
        at = self.x.shape[1] - n if at is None else at
        rows = prompt.to(self.x.dtype).expand(self.x.shape[0], -1, -1)
        x = torch.cat([self.x[:, :at], rows, self.x[:, at + n :]], 1)  # [B, L, D]
        return replace(self, x=x, shared=self.shared if len(prompt) == 1 else min(self.shared, at))

    def where(self, mask: Tensor, value: Tensor) -> Tokens:
        """Replace the patches (images) or tokens (texts) marked in `mask` by `value` [D].

        `mask` is [B, H*W] or [B, H, W] for images, [B, L] for texts; True is replaced.
        """
        mask = mask.flatten(1)
        if self.first_patch is not None:
            whole = mask.new_zeros(self.x.shape[:2])
            whole[:, self.first_patch : self.first_patch + mask.shape[1]] = mask
            mask = whole  # [B, L]
        if mask.shape != self.x.shape[:2]:
            raise ValueError(f"mask of shape {tuple(mask.shape)} does not fit tokens {tuple(self.x.shape)}")
        return replace(self, x=torch.where(mask[..., None], value.to(self.x.dtype), self.x), shared=0)

    def hide(self, keep: Tensor) -> Tokens:
        """Keep only the patches numbered in `keep` [B, K] (masked autoencoders, patch dropping).

        The grid is gone afterwards: the patches no longer tile the picture.
        """
        if self.first_patch is None or self.grid is None:
            raise ValueError("only image tokens on their grid can be dropped")
        first, count = self.first_patch, self.grid[0] * self.grid[1]
        patches = self.patches().gather(1, keep[..., None].expand(-1, -1, self.x.shape[-1]))  # [B, K, D]
        x = torch.cat([self.x[:, :first], patches, self.x[:, first + count :]], 1)
        return replace(self, x=x, grid=None)

    def around(self, radius: int) -> Tokens:
        """A sequence for each place of the grid: what is no patch, and the patches at most `radius` rows or columns
        away. [B * H * W, ...]; at the border the nearest whole neighbourhood stands in. What goes `beside` the layers
        speaks of the whole image, so no place has it.
        """
        patches = self.patches()
        assert self.grid is not None and self.first_patch is not None
        if self.visible is not None:
            raise ValueError("tokens with read-only prompts cannot be taken apart: insert them afterwards")
        side = 2 * radius + 1
        if min(self.grid) < side:
            raise ValueError(f"a grid of {self.grid[0]}x{self.grid[1]} has no neighbourhood of {side}x{side} patches")
        rows, columns = (
            torch.arange(n, device=self.x.device).clamp(radius, n - 1 - radius)[:, None]
            + torch.arange(-radius, radius + 1, device=self.x.device)
            for n in self.grid
        )  # [H, side], [W, side]
        at = rows[:, None, :, None] * self.grid[1] + columns[None, :, None, :]  # [H, W, side, side]
        near = patches[:, at.flatten(0, 1).flatten(1)].flatten(0, 1)  # [B * H * W, side * side, D]
        places = len(at) * at.shape[1]
        whole = lambda x: x.repeat_interleave(places, 0)
        before, after = self.x[:, : self.first_patch], self.x[:, self.first_patch + patches.shape[1] :]
        moved = self.pool_at - (self.pool_at > self.first_patch) * (patches.shape[1] - side * side)
        x = torch.cat([whole(before), near, whole(after)], 1)
        return replace(self, x=x, pool_at=whole(moved), grid=(side, side), shared=0, beside=None)

    def patches(self) -> Tensor:
        """The patch tokens, row by row: [B, H*W, D]."""
        if self.first_patch is None or self.grid is None:
            raise ValueError("these tokens have no patch grid (texts, or patches were dropped)")
        return self.x[:, self.first_patch : self.first_patch + self.grid[0] * self.grid[1]]

    def pooled(self) -> Tensor:
        """The token at `pool_at`: [B, D]."""
        return self.x[torch.arange(self.x.shape[0], device=self.x.device), self.pool_at]

    def real(self) -> Tensor:
        """True where a token is not padding: [B, L]."""
        steps = torch.arange(self.x.shape[1], device=self.x.device)
        if self.length is None:
            return torch.ones(self.x.shape[:2], dtype=torch.bool, device=self.x.device)
        return steps < self.length[:, None]

    def _visible_with(self, n: int, at: int) -> Tensor:
        length = self.x.shape[1]
        old = torch.ones(length, length, dtype=torch.bool, device=self.x.device)
        old = old if self.visible is None else self.visible
        new = torch.ones(length + n, length + n, dtype=torch.bool, device=self.x.device)
        kept = [i for i in range(length + n) if not at <= i < at + n]
        index = torch.tensor(kept, device=self.x.device)
        new[index[:, None], index] = old
        return new


Edit = Callable[[int, Tokens], Tokens]
"""Called before layer i with what is about to enter it; returns what enters instead."""
