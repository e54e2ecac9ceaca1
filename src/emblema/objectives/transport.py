"""Optimal transport between two sets, with entropy: who should be matched with whom."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinkhorn(
    score: Tensor,
    epsilon: float,
    rounds: int,
    row_mass: Tensor | None = None,
    column_mass: Tensor | None = None,
) -> Tensor:
    """A plan that puts much mass where the score is high, by alternately scaling rows and columns.

    Computed on logarithms, in fp32 or better: exp(score / epsilon) overflows half precision at OTTER's
    settings.

    Args:
        score: [..., N, M], higher is better (minus the cost).
        epsilon: strength of the entropy; the plan sharpens as it goes to 0.
        rounds: how often rows, then columns, are scaled; after the last round the columns are exact.
        row_mass, column_mass: [N] and [M], each summing to 1; None for uniform.

    Returns:
        [..., N, M], >= 0, columns summing to `column_mass`; rows to `row_mass` once converged.

    Raises:
        ValueError: epsilon <= 0 or rounds < 1.

    Cuturi 2013 (1306.0895).
    """
    if epsilon <= 0 or rounds < 1:
        raise ValueError(f"sinkhorn(epsilon={epsilon}, rounds={rounds}): expected epsilon > 0 and rounds >= 1.")
    N, M = score.shape[-2:]
    log_plan = score.to(torch.promote_types(score.dtype, torch.float32)) / epsilon
    log_rows = -math.log(N) if row_mass is None else row_mass.log()[:, None]  # [N, 1]
    log_columns = -math.log(M) if column_mass is None else column_mass.log()  # [M]
    for _ in range(rounds):
        log_plan = log_plan - log_plan.logsumexp(-1, keepdim=True) + log_rows
        log_plan = log_plan - log_plan.logsumexp(-2, keepdim=True) + log_columns
    return log_plan.exp()
