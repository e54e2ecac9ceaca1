"""Eqs. 2-3 and the sigmoid loss without the B x B matrix: one tile of logits at a time.

The dense losses keep several B x B matrices for the backward pass: at B = 32 768 that is 4 GB each. Here the
logits are streamed through one small buffer, and computed again in the backward pass. Values and gradients
(features, scale, bias) are those of the dense losses; memory grows with B, not B². One tile serves both
directions, which also makes this the faster form: four matrix products a step where the dense form needs six.

Numerics. A tile is exponentiated once, and its row and column sums are merged into running log-sum-exps. Each
sum is then checked: where one lies so low or so high that fp32 lost digits (large scales), the tile is summed
again, each row and each column relative to its own maximum. Nothing underflows or overflows, at any scale.

With several processes each holds the tiles of its own rows against all columns (see `emblema.core.gather`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from emblema.core.gather import gather, rank
from emblema.objectives.checks import paired_unit_rows

SAFE = 60.0  # in nats: fp32 holds e^-60, terms a further 27 nats below it, and e^60


def tiled_contrastive(
    z_image: Tensor, z_text: Tensor, scale: Tensor | float, *, tile: int = 1024, bf16: bool = False
) -> Tensor:
    """`image_text_contrastive(z_image, z_text, scale)` in memory linear in B.

    Args:
        z_image: [B, D] unit rows.
        z_text: [B, D] unit rows; row i is the pair of image i.
        scale: 1 / tau.
        tile: side of the square of logits that is held at a time.
        bf16: multiply in bfloat16, for hardware that is faster at it; exponentials and sums stay fp32, as
            does the sum of gradients over tiles.

    Returns:
        The scalar 1/2 (L_I2T + L_T2I), >= 0, mean over the rows of this process.

    Raises:
        ValueError: features that are not paired unit rows.

    Radford et al. 2021 (2103.00020); survey Eqs. 2-3.
    """
    paired_unit_rows(z_image=z_image, z_text=z_text)
    return _Contrastive.apply(*_prepare(z_image, z_text, scale), tile, bf16)  # type: ignore[no-any-return]


def tiled_sigmoid(
    z_image: Tensor,
    z_text: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    *,
    tile: int = 1024,
    bf16: bool = False,
) -> Tensor:
    """`sigmoid_contrastive(z_image, z_text, scale, bias)` in memory linear in B.

    Arguments as `tiled_contrastive`, and `bias` is added to every logit. Returns a scalar >= 0.
    Zhai et al. 2023 (2303.15343).
    """
    paired_unit_rows(z_image=z_image, z_text=z_text)
    rows, columns, scale = _prepare(z_image, z_text, scale)
    bias = torch.as_tensor(bias, dtype=rows.dtype, device=rows.device)
    return _Sigmoid.apply(rows, columns, scale, bias, tile, bf16)  # type: ignore[no-any-return]


def _prepare(z_image: Tensor, z_text: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(z_image.dtype, z_text.dtype), torch.float32)
    scale = torch.as_tensor(scale, dtype=dtype, device=z_image.device)
    return z_image.to(dtype), gather(z_text.to(dtype)), scale  # [b, D], [B, D], []


class _Tiles:
    """The tiles of `scale * rows @ columns.T`, each in one reused buffer, and products with them."""

    def __init__(self, rows: Tensor, columns: Tensor, scale: Tensor, tile: int, bf16: bool) -> None:
        self.bf16 = bf16
        self.left = rows * scale  # [b, D]
        self.rows, self.columns, self.size = rows, columns, tile
        if bf16:
            self.left, self.rows, self.columns = self.left.bfloat16(), rows.bfloat16(), columns.bfloat16()
        height, width = min(tile, len(rows)), min(tile, len(columns))
        self.logit_buffer, self.other_buffer = rows.new_empty(height * width), rows.new_empty(height * width)
        self.half_buffer = self.columns.new_empty(height * width if bf16 else 0)

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        """(rows, columns, logits [r, c], scratch [r, c]) of each tile; both tensors may be overwritten."""
        for i in range(0, len(self.rows), self.size):
            for j in range(0, len(self.columns), self.size):
                left, right = self.left[i : i + self.size], self.columns[j : j + self.size]
                shape = len(left), len(right)
                area = shape[0] * shape[1]
                logits = self.logit_buffer[:area].view(shape)
                if self.bf16:
                    logits.copy_(torch.mm(left, right.T, out=self.half_buffer[:area].view(shape)))
                else:
                    torch.mm(left, right.T, out=logits)
                scratch = self.other_buffer[:area].view(shape)
                yield slice(i, i + shape[0]), slice(j, j + shape[1]), logits, scratch

    def spread(self, weights: Tensor, i: slice, j: slice, to_rows: Tensor, to_columns: Tensor) -> None:
        """Add `weights @ columns` to the rows' gradient and `weights.T @ rows` to the columns'."""
        if self.bf16:
            weights = self.half_buffer[: weights.numel()].view(weights.shape).copy_(weights)
            to_rows[i] += weights @ self.columns[j]  # [r, D]
            to_columns[j] += weights.T @ self.rows[i]  # [c, D]
        else:
            to_rows[i].addmm_(weights, self.columns[j])
            to_columns[j].addmm_(weights.T, self.rows[i])


class _Contrastive(torch.autograd.Function):
    """rows [b, D] are the images of this process, columns [B, D] the texts of all."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, tile: int, bf16: bool) -> Tensor:
        row_lse = rows.new_full((len(rows),), -torch.inf)  # [b]
        column_lse = rows.new_full((len(columns),), -torch.inf)  # [B]
        for i, j, logits, e in _Tiles(rows, columns, scale, tile, bf16):
            torch.exp(logits, out=e)  # one exponential serves both directions
            of_rows, of_columns = e.sum(1).log_(), e.sum(0).log_()  # [r], [c]
            if _furthest(of_rows, of_columns) > SAFE:
                of_rows, of_columns = logits.logsumexp(1), logits.logsumexp(0)
            row_lse[i] = torch.logaddexp(row_lse[i], of_rows)
            column_lse[j] = torch.logaddexp(column_lse[j], of_columns)
        column_lse = gather(column_lse[None]).logsumexp(0)  # [B]  rows of the other processes included
        ctx.save_for_backward(rows, columns, scale, row_lse, column_lse)
        ctx.options = tile, bf16
        mine = _own(len(rows))
        positive = scale * (rows * columns[mine]).sum(-1)  # [b]
        return (row_lse - positive).mean() / 2 + (column_lse[mine] - positive).mean() / 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, scale, row_lse, column_lse = ctx.saved_tensors
        b, mine = len(rows), _own(len(rows))
        g_row = (grads[0] / (2 * b)).expand(b)  # [b]  weight of each image's row in the total loss of all processes
        g_column = gather(g_row)  # [B]  and of each text's column
        to_rows, to_columns = torch.zeros_like(rows), torch.zeros_like(columns)
        tiles = _Tiles(rows, columns, scale, *ctx.options)
        for i, j, logits, weights in tiles:
            _softmax_weights(logits, weights, row_lse[i, None], column_lse[None, j], g_row[i, None], g_column[None, j])
            tiles.spread(logits, i, j, to_rows, to_columns)
        to_rows -= (2 * g_row)[:, None] * columns[mine]  # the pairs themselves, exactly
        to_columns[mine] -= (2 * g_row)[:, None] * rows
        to_scale = (to_rows * rows).sum()  # sum_ij G_ij <row_i, column_j>
        return to_rows.mul_(scale), to_columns.mul_(scale), to_scale, None, None


def _softmax_weights(s: Tensor, scratch: Tensor, row: Tensor, column: Tensor, g_row: Tensor, g_column: Tensor) -> None:
    """In place: s <- g_row * exp(s - row) + g_column * exp(s - column)."""
    if _furthest(row, column) > SAFE:  # measure from the lowest log-sum-exp of the tile
        low = torch.minimum(row.min(), column.min())
        s, row, column = s.sub_(low), row - low, column - low
    if _furthest(row, column) <= SAFE:  # one exponential serves both directions; s <= min(row, column)
        torch.add(g_row * (-row).exp(), g_column * (-column).exp(), out=scratch)  # [r, c]
        s.exp_().mul_(scratch)
    else:
        torch.sub(s, column, out=scratch).exp_().mul_(g_column)
        s.sub_(row).exp_().mul_(g_row).add_(scratch)


def _furthest(*logs: Tensor) -> float:
    """The largest absolute value; infinite when a sum overflowed or vanished."""
    return max(float(x.abs().max()) for x in logs)


class _Sigmoid(torch.autograd.Function):
    """No normaliser, so the gradient is collected in the forward pass already: three products a step."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, tile: int, bf16: bool) -> Tensor:
        b, mine = len(rows), _own(len(rows))
        to_rows, to_columns = torch.zeros_like(rows), torch.zeros_like(columns)
        loss, to_bias = rows.new_zeros(()), rows.new_zeros(())
        tiles = _Tiles(rows, columns, scale, tile, bf16)
        for i, j, logits, scratch in tiles:
            logits += bias
            loss += F.softplus(logits, threshold=100).sum()  # -log sigmoid(-logit), as if all were negatives
            torch.sigmoid(logits, out=scratch)
            to_bias += scratch.sum()
            tiles.spread(scratch, i, j, to_rows, to_columns)
        positive = scale * (rows * columns[mine]).sum(-1) + bias  # [b]
        loss -= positive.sum()  # softplus(x) - x = -log sigmoid(x)
        to_rows -= columns[mine]
        to_columns[mine] -= rows
        to_scale = (to_rows * rows).sum()
        ctx.save_for_backward(to_rows, to_columns, scale, to_scale, to_bias - b)
        return loss / b

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        to_rows, to_columns, scale, to_scale, to_bias = ctx.saved_tensors
        g = grads[0] / len(to_rows)
        return g * scale * to_rows, g * scale * to_columns, g * to_scale, g * to_bias, None, None


def _own(b: int) -> slice:
    """The columns that are the pairs of this process's b rows."""
    return slice(rank() * b, (rank() + 1) * b)
