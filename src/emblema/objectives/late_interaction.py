"""Token-wise similarity of images and texts: every patch finds its best word, every word its best patch (FILIP)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from emblema.core.gather import gather, rank, world_size

BUDGET = 2**24  # token pairs held at once: 64 MB of fp32


def late_interaction(patches: Tensor, words: Tensor, real: Tensor, *, budget: int = BUDGET) -> tuple[Tensor, Tensor]:
    """Similarity of all images with all texts, from their tokens, in both directions.

        s_image(i, j) = mean over patches p of   max over words l of   <u_ip, w_jl>
        s_text (i, j) = mean over words l of     max over patches p of <u_ip, w_jl>

    The two matrices differ; neither is the transpose of the other. The N x M x P x L products are never held
    together: images are taken in chunks of at most `budget` products, which the backward pass computes again. Values
    and gradients are exact.

    Args:
        patches: u [N, P, D] unit.
        words: w [M, L, D] unit.
        real: [M, L] False at padding, which takes part in neither the maximum nor the mean.

    Returns:
        (s_image [N, M], s_text [N, M]), both with images as rows.

    Raises:
        ValueError: shapes that do not fit, or a text without a word.

    Yao et al. 2021 (2111.07783).
    """
    N, P, D = patches.shape
    M, L = words.shape[:2]
    if words.shape[2] != D or real.shape != (M, L) or not P:
        raise ValueError(
            f"patches {tuple(patches.shape)}, words {tuple(words.shape)}, real {tuple(real.shape)}: "
            "expected [N, P, D], [M, L, D] and [M, L]"
        )
    real = real.bool()
    if not real.any(1).all():
        raise ValueError(f"text {int((~real.any(1)).nonzero()[0])} has no token that is not padding")
    step = max(budget // max(M * P * L, 1), 1)
    parts = [checkpoint(_compare, patches[i : i + step], words, real, use_reentrant=False) for i in range(0, N, step)]
    s_image, s_text = (torch.cat(s) for s in zip(*parts))  # each [N, M]
    return s_image, s_text


def _compare(patches: Tensor, words: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    n, P, D = patches.shape
    M, L = real.shape
    with torch.autocast(patches.device.type, enabled=False):
        pairs = patches.float().reshape(n * P, D) @ words.float().reshape(M * L, D).T
    pairs = pairs.view(n, P, M, L)
    best_word = pairs.masked_fill(~real, -torch.inf).max(3).values  # [n, P, M]
    best_patch = pairs.max(1).values  # [n, M, L]
    weight = real / real.sum(1, keepdim=True)  # [M, L]
    return best_word.mean(1), (best_patch * weight).sum(2)


def late_contrastive(patches: Tensor, words: Tensor, scale: Tensor | float, *, budget: int = BUDGET) -> Tensor:
    """FILIP's loss: 1/2 [CE over texts of s * s_image + CE over images of s * s_text], mean over own rows.

    Args:
        patches: [b, P, D] unit. words: [b, L, D] unit, **zero rows at padding**; L is the same on all processes.
        scale: 1 / tau.

    Returns:
        A scalar >= 0.
    """
    all_patches, all_words = gather(patches), gather(words)  # [B, P, D], [B, L, D]
    longest = int(all_words.detach().any(-1).any(0).sum())  # padding comes last
    words, all_words = words[:, :longest], all_words[:, :longest]
    b = len(patches)
    s_image, s_text = late_interaction(patches, all_words, all_words.detach().any(-1), budget=budget)
    if world_size() > 1:
        s_text = late_interaction(all_patches, words, words.detach().any(-1), budget=budget)[1]  # [B, b]
    own = torch.arange(b, device=patches.device) + rank() * b
    return (F.cross_entropy(scale * s_image, own) + F.cross_entropy(scale * s_text.T, own)) / 2
