"""Refuse features that would train silently into nonsense."""

from __future__ import annotations

import torch
from torch import Tensor


def paired_unit_rows(**features: Tensor) -> None:
    """Check that the named features are matrices of one shape whose rows have length 1.

    Raises:
        ValueError: another shape, a NaN or an infinity, or rows that are not L2-normalised (tolerance 2 %,
            which bf16 features keep).
    """
    shapes = {name: tuple(z.shape) for name, z in features.items()}
    if any(len(shape) != 2 for shape in shapes.values()) or len(set(shapes.values())) > 1:
        raise ValueError(f"features arrived as {shapes}, expected one shape [B, D] for all; row i is pair i.")
    for name, z in features.items():
        unit_rows(z, name)


def unit_rows(z: Tensor, name: str) -> None:
    """Check that every row of z [N, D] has length 1 (see `paired_unit_rows`)."""
    norms = z.detach().float().norm(dim=-1)  # [N]
    if not torch.isfinite(norms).all():
        bad = int((~torch.isfinite(norms)).sum())
        raise ValueError(
            f"{bad} of {len(norms)} rows of {name} hold NaN or infinity. Look for a zero row before "
            "normalisation, a learning rate that is too high, or an fp16 overflow in the encoder."
        )
    if len(norms) and (norms - 1).abs().max() > 0.02:
        raise ValueError(
            f"rows of {name} have lengths {norms.min():.3g} to {norms.max():.3g}, expected 1. "
            f"Pass torch.nn.functional.normalize({name}, dim=-1)."
        )
