"""Which precision the products of a training step run in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def has_bf16(device: torch.device | str = "cpu") -> bool:
    """Does the device multiply in bf16 faster than in fp32?"""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def resolved(precision: str, device: torch.device | str = "cpu") -> str:
    """ "auto" -> "bf16" where the hardware has it, else "fp32"."""
    if precision not in ("auto", "bf16", "fp32"):
        raise ValueError(f'unknown precision {precision!r}: use "auto", "bf16" or "fp32"')
    return ("bf16" if has_bf16(device) else "fp32") if precision == "auto" else precision


def autocast(precision: str, device: torch.device | str = "cpu") -> AbstractContextManager[object]:
    """A fresh context for one forward pass. Weights, norms, losses and optimiser state stay in fp32."""
    if resolved(precision, device) == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)
