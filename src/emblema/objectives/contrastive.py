"""Survey Eqs. 1-5: pull the two halves of a pair together, push the others apart.

Every loss compares the rows of this process with the columns of all processes and returns the mean over its
own rows; see `emblema.core.gather` for why the averaged gradients are then those of the joint batch. b = rows
here, B = rows of all processes (b = B on one process). Logits and losses are fp32 or better, under autocast
too.

Where the survey's equations and the code that trains models differ, code wins and the survey's form has a
name: Eq. 1 is schematic, real variants are `nt_xent` and `moco`; Eqs. 2-3 are summed in the survey
(`reduction="sum"`) and averaged in code; Eqs. 4-5 have no 1/B in the survey (`normalise="equation"`).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from emblema.core.gather import gather, rank, world_size
from emblema.objectives.checks import paired_unit_rows, unit_rows
from emblema.objectives.tiled import tiled_contrastive

TILED_FROM = 2048  # joint batches larger than this never hold the matrix of logits (`emblema.objectives.tiled`)
Reduction = Literal["mean2", "sum"]
Directions = Literal["both", "i2t", "t2i"]


def nt_xent(z_a: Tensor, z_b: Tensor, temperature: float = 0.1) -> Tensor:
    """SimCLR's loss on two views: each row against the 2B - 1 other rows of both views.

    Args:
        z_a, z_b: [b, D] unit rows, row i of each a view of image i.
        temperature: fixed, not learned.

    Returns:
        A scalar >= 0.

    Chen et al. 2020 (2002.05709); survey Eq. 1.
    """
    paired_unit_rows(z_a=z_a, z_b=z_b)
    all_a, all_b = gather(z_a), gather(z_b)  # [B, D]
    return (_one_view(z_a, all_a, all_b, temperature) + _one_view(z_b, all_b, all_a, temperature)) / 2


def _one_view(z: Tensor, same: Tensor, other: Tensor, temperature: float) -> Tensor:
    positive = _diagonal(z)  # [b]
    to_same = similarity(z, same) / temperature  # [b, B]
    itself = torch.zeros_like(to_same, dtype=torch.bool).scatter_(1, positive[:, None], True)
    to_same = to_same.masked_fill(itself, -torch.inf)
    logits = torch.cat([similarity(z, other) / temperature, to_same], dim=1)  # [b, 2B]
    return F.cross_entropy(logits, positive)


def moco(q: Tensor, k: Tensor, queue: Tensor, temperature: float = 0.2) -> Tensor:
    """MoCo's loss: each query against its own key and a queue of older keys; no negatives within the batch.

    Args:
        q: [b, D] unit rows from the trained encoder.
        k: [b, D] unit rows from the momentum encoder, without gradient.
        queue: [K, D] unit rows, read before this batch is pushed (`emblema.parts.queue`).

    Returns:
        A scalar >= 0.

    He et al. 2019 (1911.05722); survey Eq. 1.
    """
    paired_unit_rows(q=q, k=k)
    unit_rows(queue, "queue")
    positive = (q * k).sum(-1, keepdim=True)  # [b, 1]
    logits = torch.cat([positive, similarity(q, queue)], dim=1).float() / temperature  # [b, 1 + K]
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


def image_text_contrastive(
    z_image: Tensor,
    z_text: Tensor,
    scale: Tensor | float,
    targets: Tensor | None = None,
    *,
    targets_t2i: Tensor | None = None,
    reduction: Reduction = "mean2",
    directions: Directions = "both",
    sample_weight: Tensor | None = None,
) -> Tensor:
    """CLIP's symmetric InfoNCE, with hard or soft targets.

    Args:
        z_image: [b, D] unit rows.
        z_text: [b, D] unit rows; row i is the pair of image i.
        scale: 1 / tau (`LogitScale`).
        targets: None for the pairs themselves, or [b, B] with rows that sum to 1: what share of image i
            belongs to each text of the joint batch (`emblema.objectives.targets`).
        targets_t2i: the same for each text over all images; None to transpose `targets` and normalise its
            rows.
        reduction: "mean2" halves the sum of the two directions as code does, "sum" adds them as Eqs. 2-3 do.
            It changes the ratio to other terms of a loss. With one direction both return that direction.
        directions: both, or only image-to-text, or only text-to-image.
        sample_weight: [b], multiplies the terms of sample i in both directions before the mean (ALIP); gets
            no gradient.

    Returns:
        A scalar >= 0 (for non-negative weights), the mean over the rows of this process. With the defaults, a joint
        batch above `TILED_FROM` is computed in tiles, with the same value and gradients.

    Raises:
        ValueError: features that are not paired unit rows; targets of a wrong shape or with a row that does
            not sum to 1; an unknown option.

    Radford et al. 2021 (2103.00020); survey Eqs. 2-3.
    """
    paired_unit_rows(z_image=z_image, z_text=z_text)
    _one_of("reduction", reduction, ("mean2", "sum"))
    _one_of("directions", directions, ("both", "i2t", "t2i"))
    plain = targets is None and targets_t2i is None and sample_weight is None
    if plain and reduction == "mean2" and directions == "both" and len(z_image) * world_size() > TILED_FROM:
        return tiled_contrastive(z_image, z_text, scale)
    if targets is not None and targets_t2i is None and directions != "i2t":
        targets_t2i = _transpose(targets)
    terms = []
    if directions != "t2i":
        terms.append(_direction(z_image, z_text, scale, targets, sample_weight))  # Eq. 2
    if directions != "i2t":
        terms.append(_direction(z_text, z_image, scale, targets_t2i, sample_weight))  # Eq. 3
    return torch.stack(terms).sum() / (len(terms) if reduction == "mean2" else 1)


def queued_contrastive(
    z_image: Tensor, z_text: Tensor, older_images: Tensor, older_texts: Tensor, scale: Tensor | float
) -> Tensor:
    """ALBEF's and FIBER's InfoNCE: each row against the batch and a queue of older features; keys get no gradient.

    Args:
        z_image, z_text: [b, D] unit rows, row i of each a pair.
        older_images, older_texts: [K, D] unit rows, read before this batch is pushed. K = 0: the value is that of
            `image_text_contrastive`, whose gradient flows through both sides.
        scale: 1 / tau.

    Returns:
        A scalar >= 0, the mean of both directions.

    Dou et al. 2022 (2206.07643); survey Eqs. 2-3.
    """
    paired_unit_rows(z_image=z_image, z_text=z_text)
    columns = lambda z, older: torch.cat([gather(z.detach()), older.to(z)])  # [B + K, D]
    to_text = scale * similarity(z_image, columns(z_text, older_texts))  # [b, B + K]
    to_image = scale * similarity(z_text, columns(z_image, older_images))
    right = _diagonal(z_image)
    return (F.cross_entropy(to_text, right) + F.cross_entropy(to_image, right)) / 2


def image_text_label_contrastive(
    z_image: Tensor,
    z_text: Tensor,
    labels: Tensor,
    scale: Tensor | float,
    *,
    normalise: Literal["mean", "equation"] = "mean",
) -> Tensor:
    """UniCL: every text with my label is my positive.

    With all labels different it is `image_text_contrastive`; so it is when the texts of a label are all
    identical.

    Args:
        z_image, z_text: [b, D] unit rows.
        labels: [b] integers; a pair without a class gets a label of its own.
        scale: 1 / tau.
        normalise: "mean" averages over rows and directions as training code does; "equation" is Eqs. 4-5 to
            the
            letter: the sum over all rows and both directions (2B times as large).

    Returns:
        A scalar >= 0.

    Yang et al. 2022 (2204.03610); survey Eqs. 4-5.
    """
    _one_of("normalise", normalise, ("mean", "equation"))
    if labels.shape != z_image.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"labels arrived as {tuple(labels.shape)} {labels.dtype}, expected [{len(z_image)}] integers: "
            "one class index a pair, and a unique index for a pair without a class."
        )
    same = (labels[:, None] == gather(labels)).to(torch.promote_types(z_image.dtype, torch.float32))  # [b, B]
    targets = same / same.sum(1, keepdim=True)  # 1 / |P(i)| on the positives
    mean = image_text_contrastive(z_image, z_text, scale, targets, targets_t2i=targets)
    return mean if normalise == "mean" else mean * 2 * len(labels) * world_size()


def sigmoid_contrastive(z_image: Tensor, z_text: Tensor, scale: Tensor | float, bias: Tensor | float) -> Tensor:
    """SigLIP: every image-text pair is a yes-or-no question of its own.

    Args:
        z_image, z_text: [b, D] unit rows.
        scale: 1 / tau, from 10 on (`LogitScale.preset("siglip")`).
        bias: added to every logit; starts at -10, since nearly all pairs are negatives.

    Returns:
        A scalar >= 0: the sum over columns, the mean over rows.

    Zhai et al. 2023 (2303.15343); not in the survey.
    """
    paired_unit_rows(z_image=z_image, z_text=z_text)
    logits = scale * similarity(z_image, gather(z_text)) + bias  # [b, B]
    y = torch.full_like(logits, -1).scatter_(1, _diagonal(z_image)[:, None], 1)  # +1 for a pair, -1 otherwise
    return -F.logsigmoid(y * logits).sum() / len(logits)


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.T in fp32 or better, whatever autocast says: [N, D], [M, D] -> [N, M]."""
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        return a.to(dtype) @ b.to(dtype).T


def _direction(
    z: Tensor, other: Tensor, scale: Tensor | float, targets: Tensor | None, weight: Tensor | None
) -> Tensor:
    logits = scale * similarity(z, gather(other))  # [b, B]
    if targets is None:
        losses = F.cross_entropy(logits, _diagonal(z), reduction="none")  # [b]
    else:
        _check_targets(targets, logits)
        losses = F.cross_entropy(logits, targets.to(logits.dtype), reduction="none")  # [b]
    return (losses if weight is None else weight.detach() * losses).mean()


def _diagonal(z: Tensor) -> Tensor:
    """The column of each row's pair: [b]."""
    return torch.arange(len(z), device=z.device) + rank() * len(z)


def _transpose(targets: Tensor) -> Tensor:
    """What each text of this process owes to each image of all: [b, B] -> [b, B], rows normalised."""
    b = len(targets)
    columns = gather(targets.detach())[:, rank() * b : (rank() + 1) * b].T  # [b, B]
    mass = columns.sum(1, keepdim=True)
    if (mass <= 0).any():
        text = int((mass <= 0).flatten().nonzero()[0])
        raise ValueError(
            f"text {text} is the positive of no image, so the text-to-image direction has no target for it. "
            "Pass targets_t2i, or directions='i2t'."
        )
    return columns / mass


def _check_targets(targets: Tensor, logits: Tensor) -> None:
    if targets.shape != logits.shape:
        raise ValueError(
            f"targets arrived as {tuple(targets.shape)}, expected {tuple(logits.shape)}: "
            "the rows of this process over the columns of all processes."
        )
    sums = targets.detach().sum(1)
    if not torch.allclose(sums, torch.ones_like(sums), atol=1e-2):
        row = int((sums - 1).abs().nan_to_num(torch.inf).argmax())
        what = "has no positive" if sums[row] == 0 else f"sums to {sums[row]:.3g}"
        raise ValueError(f"row {row} of targets {what}, expected every row to sum to 1. Divide by the row sums.")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r}, expected one of {', '.join(map(repr, known))}.")
