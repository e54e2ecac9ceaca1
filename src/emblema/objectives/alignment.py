"""Survey Eqs. 10-11: does this text belong to this image, does this word belong to this region?

The survey writes both without their minus sign; every function here is a loss, >= 0.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def image_text_matching(logits: Tensor, matched: Tensor) -> Tensor:
    """Two-way softmax on fused image-text pairs, as ALBEF, VLMo and FLAVA train it.

    Args:
        logits: [N, 2]; column 1 says "they match". With hard negatives N = 3B, of which B match.
        matched: [N], true where the pair is real.

    Returns:
        A scalar >= 0, mean over pairs.

    Li et al. 2021 (2107.07651); survey Eq. 10.
    """
    if logits.shape != (len(matched), 2):
        raise ValueError(
            f"logits arrived as {tuple(logits.shape)}, expected [{len(matched)}, 2], a row for each pair. "
            "A head with one logit a pair goes with image_text_matching_bce."
        )
    return F.cross_entropy(logits.float(), matched.long())


def image_text_matching_bce(scores: Tensor, matched: Tensor) -> Tensor:
    """Eq. 10 to the letter (with its minus sign): -[p log S + (1 - p) log(1 - S)].

    Args:
        scores: [N] logits; S = sigmoid(scores).
        matched: [N] p, 1 where the pair is real.
    """
    return F.binary_cross_entropy_with_logits(scores.float(), matched.float())


@torch.no_grad()
def hard_negatives(
    similarity: Tensor, equal: Tensor | None = None, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw for each image a text, and for each text an image, that look right and are wrong.

    A candidate is drawn with the probability that the contrastive softmax gives it, its true pair excluded.

    Args:
        similarity: [B, B] logits, row i = image i (already multiplied by the scale).
        equal: [B, B], true where a text says the same as another: never drawn (the diagonal never is).
        generator: the source of randomness.

    Returns:
        (text index of each image [B], image index of each text [B]).

    Raises:
        ValueError: a batch of one, or a row whose candidates are all equal to its pair.

    Li et al. 2021 (2107.07651).
    """
    B = len(similarity)
    if similarity.shape != (B, B) or B < 2:
        raise ValueError(
            f"similarity arrived as {tuple(similarity.shape)}, expected [B, B] with B >= 2: "
            "a batch of one pair holds no negative. Use a larger batch, or skip this term."
        )
    forbidden = torch.eye(B, dtype=torch.bool, device=similarity.device)
    if equal is not None:
        forbidden = forbidden | equal.bool()
    return _draw(similarity, forbidden, generator), _draw(similarity.T, forbidden.T, generator)


def _draw(logits: Tensor, forbidden: Tensor, generator: torch.Generator | None) -> Tensor:
    if forbidden.all(1).any():
        row = int(forbidden.all(1).nonzero()[0])
        raise ValueError(f"row {row} has no negative: every candidate equals its pair. Use a larger batch.")
    # masked before the softmax, so a row cannot round to zeros as it does when its diagonal is zeroed after
    weights = logits.float().masked_fill(forbidden, -torch.inf).softmax(1)  # [B, B]
    return torch.multinomial(weights, 1, generator=generator).squeeze(1)  # [B]


def region_word(
    logits: Tensor,
    targets: Tensor,
    real: Tensor | None = None,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    normaliser: Literal["positives", "sum", "mean"] = "positives",
) -> Tensor:
    """GLIP: sigmoid focal loss between regions and words.

    Args:
        logits: [..., N, L] region x token logits, with their scale and bias.
        targets: [..., N, L] 1 where a region belongs to the phrase of the token, for *every* token of the
            phrase.
        real: [..., L], true for tokens that are not padding; None when all are.
        alpha, gamma: weight of positives; how much easy decisions are discounted.
        normaliser: "positives" divides by the number of regions with a phrase (at least 1), "sum" by nothing,
            "mean" by the number of real region-token pairs.

    Returns:
        A scalar >= 0.

    Li et al. 2022 (2112.03857); survey Eq. 11.
    """
    targets = targets.to(logits.dtype)
    p = logits.sigmoid()  # [..., N, L]
    right = p * targets + (1 - p) * (1 - targets)  # probability of the true answer
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    losses = weight * (1 - right) ** gamma * _bce(logits, targets)
    return _normalise(losses, targets, real, normaliser)


def region_word_bce(
    logits: Tensor,
    targets: Tensor,
    real: Tensor | None = None,
    *,
    normaliser: Literal["positives", "sum", "mean"] = "mean",
) -> Tensor:
    """Eq. 11 to the letter (with its minus sign): plain binary cross-entropy. Arguments as `region_word`."""
    targets = targets.to(logits.dtype)
    return _normalise(_bce(logits, targets), targets, real, normaliser)


def _bce(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def _normalise(losses: Tensor, targets: Tensor, real: Tensor | None, normaliser: str) -> Tensor:
    if normaliser not in ("positives", "sum", "mean"):
        raise ValueError(f"normaliser={normaliser!r}, expected 'positives', 'sum' or 'mean'.")
    kept = torch.ones_like(losses) if real is None else real.to(losses.dtype).unsqueeze(-2).expand_as(losses)
    total = (losses * kept).sum()
    if normaliser == "positives":
        return total / ((targets * kept) > 0).any(-1).sum().clamp(min=1)
    return total / kept.sum().clamp(min=1) if normaliser == "mean" else total
