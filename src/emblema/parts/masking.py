"""What to hide: random patches (MAE), blocks of patches (BEiT, FLAVA), tokens (BERT)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from emblema.objectives.generative import IGNORE


def random_patches(noise: Tensor, ratio: float = 0.75) -> tuple[Tensor, Tensor]:
    """MAE: keep the patches with the smallest noise.

    Args:
        noise: [B, P] uniform numbers, e.g. `torch.rand(B, P, generator=generator)`.
        ratio: share to hide.

    Returns:
        (kept [B, int(P (1 - ratio))] patch indices in the order of their noise, masked [B, P] bool).

    Raises:
        ValueError: nothing would be kept.

    He et al. 2021 (2111.06377).
    """
    P = noise.shape[1]
    n = int(P * (1 - ratio))
    if not 0 < n <= P:
        raise ValueError(f"random_patches(ratio={ratio}) keeps {n} of {P} patches, expected 1 to {P}. Change ratio.")
    kept = noise.argsort(1)[:, :n]  # [B, n]
    return kept, torch.ones_like(noise, dtype=torch.bool).scatter_(1, kept, False)


def block_patches(
    grid: tuple[int, int],
    count: int,
    generator: torch.Generator,
    *,
    smallest: int = 16,
    aspect: float = 0.3,
    tries: int = 10,
) -> Tensor:
    """BEiT: hide rectangles until `count` patches are hidden, or no rectangle fits.

    Args:
        grid: (H, W) patches. count: how many to hide at most; 75 of 14 x 14 in BEiT and FLAVA.
        smallest: least area of a rectangle. aspect: height / width lies in [aspect, 1 / aspect].
        tries: placements tried for each rectangle; after that many failures it stops early.

    Returns:
        [H, W] bool, true where hidden.

    Raises:
        ValueError: count larger than the grid.

    Bao et al. 2021 (2106.08254).
    """
    H, W = grid
    if not 0 <= count <= H * W:
        raise ValueError(f"block_patches: {count} patches to hide in a grid of {H}x{W}, expected at most {H * W}.")

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    def add_rectangle(left: int) -> bool:
        for _ in range(tries):
            area = uniform(smallest, left)
            ratio = math.exp(uniform(math.log(aspect), -math.log(aspect)))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if not (0 < h < H and 0 < w < W):
                continue
            top = int(torch.randint(H - h + 1, (), generator=generator))
            side = int(torch.randint(W - w + 1, (), generator=generator))
            block = masked[top : top + h, side : side + w]
            if 0 < h * w - int(block.sum()) <= left:
                block.fill_(True)
                return True
        return False

    masked = torch.zeros(H, W, dtype=torch.bool)
    while (left := count - int(masked.sum())) > 0 and add_rectangle(left):
        pass
    return masked


def mask_tokens(
    ids: Tensor,
    special: Tensor,
    mask_id: int,
    vocabulary: int,
    random: torch.Generator | Tensor,
    *,
    ratio: float = 0.15,
    at_least_one: bool = False,
) -> tuple[Tensor, Tensor]:
    """BERT: select tokens; 80 % become the mask token, 10 % a random token, 10 % stay.

    Args:
        ids: [B, L], not changed.
        special: [B, L], true for padding and start and end tokens, which are never selected; a 1-d tensor of
            ids works too.
        mask_id: the id of the mask token. vocabulary: random tokens are drawn from 0 to vocabulary - 1.
        random: a generator, or uniform numbers [B, 3, L or more] (`Batch.noise`).
        ratio: the probability of being selected.
        at_least_one: select one token of each text that would have none (and has one to select).

    Returns:
        (corrupted ids [B, L], targets [B, L]: the original id where selected, -100 elsewhere).

    Devlin et al. 2018 (1810.04805).
    """
    special = torch.isin(ids, special) if special.ndim == 1 else special.bool()  # [B, L]
    if isinstance(random, torch.Generator):
        random = torch.rand(len(ids), 3, ids.shape[1], generator=random)
    draw, how, which = random[..., : ids.shape[1]].to(ids.device).unbind(1)  # each [B, L]
    draw = draw.masked_fill(special, torch.inf)
    selected = draw < ratio
    if at_least_one:
        selected |= (draw == draw.min(1, keepdim=True).values) & ~special & ~selected.any(1, keepdim=True)
    random_ids = (which * vocabulary).long().clamp(max=vocabulary - 1)
    corrupted = torch.where(selected & (how < 0.8), mask_id, ids)
    corrupted = torch.where(selected & (how >= 0.8) & (how < 0.9), random_ids, corrupted)
    return corrupted, ids.masked_fill(~selected, IGNORE)
