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
def hard_negatives(similarity: Tensor, equal: Tensor, noise: Tensor) -> Tensor:
    """Draw for each query a candidate that looks right and is wrong: [B]; -1 for a query that has none.

    A candidate is drawn with the probability that the contrastive softmax gives it among those that may be drawn.

    Args:
        similarity: [B, N] logits (already multiplied by the scale) of queries and candidates: the batch's own, then
            those of a queue, if any.
        equal: [B, N], true where a candidate says the same as the query's pair, the pair itself among them: never
            drawn.
        noise: [B] uniform numbers.

    Raises:
        ValueError: shapes that do not fit.

    Li et al. 2021 (2107.07651); with a queue Dou et al. 2022 (2206.07643).
    """
    B = len(similarity)
    if similarity.dim() != 2 or equal.shape != similarity.shape or noise.shape != (B,):
        raise ValueError(
            f"similarity arrived as {tuple(similarity.shape)}, equal as {tuple(equal.shape)}, noise as "
            f"{tuple(noise.shape)}: expected [B, N], [B, N] and [B]."
        )
    equal, noise = equal.bool(), noise.to(similarity)
    # masked before the softmax, so a row cannot round to zeros as it does when its diagonal is zeroed after
    chance = similarity.float().masked_fill(equal, -torch.inf).softmax(1)  # [B, N]
    upto = chance.cumsum(1)
    drawn = (upto <= noise[:, None] * upto[:, -1:]).sum(1)  # the first whose share passes the number
    last = chance.shape[1] - 1 - (chance > 0).flip(1).int().argmax(1)  # rounding must not pass the last candidate
    return torch.minimum(drawn, last).masked_fill(equal.all(1), -1)


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
