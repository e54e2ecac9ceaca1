"""Who is whose positive? Functions that return [b, B] matrices whose rows sum to 1.

A row is one image of this process, a column one text of the joint batch (`emblema.core.gather`); pass the
matrix as `targets` to `image_text_contrastive`. The functions take features of this process and gather the
columns themselves. Nothing here has a gradient.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from emblema.core.gather import gather, gather_objects, rank, world_size
from emblema.objectives.contrastive import similarity
from emblema.objectives.transport import sinkhorn


class TargetBuilder(Protocol):
    """Anything that turns the features of a batch into row-stochastic targets, e.g. a `functools.partial` of
    `transport` or of `momentum_softmax`."""

    def __call__(self, z_image: Tensor, z_text: Tensor) -> Tensor: ...


def identity(b: int, device: torch.device | str | None = None) -> Tensor:
    """Each image belongs to its own text: [b, B]. As `targets` it reproduces `targets=None`."""
    eye = torch.zeros(b, b * world_size(), device=device)
    eye[torch.arange(b), torch.arange(b) + rank() * b] = 1
    return eye


def smoothing(targets: Tensor, share: float, form: Literal["pytorch", "n_minus_1"] = "pytorch") -> Tensor:
    """Take `share` from each row and spread it evenly: [b, B] -> [b, B].

    "pytorch" spreads it over all B columns, so a hard positive keeps 1 - share + share / B; "n_minus_1"
    (PyramidCLIP, OTTER's baseline) over the others, so it keeps 1 - share. For hard targets "n_minus_1" with
    `share` is "pytorch" with share * B / (B - 1).

    Raises:
        ValueError: an unknown form, share outside [0, 1], or "n_minus_1" with one column.
    """
    B = targets.shape[1]
    if form not in ("pytorch", "n_minus_1") or not 0 <= share <= 1 or (form == "n_minus_1" and B == 1):
        raise ValueError(
            f"smoothing(share={share}, form={form!r}) over {B} columns: expected form 'pytorch' or "
            "'n_minus_1', share in [0, 1], and at least 2 columns for 'n_minus_1'."
        )
    if form == "pytorch":
        return targets * (1 - share) + share / B
    return targets * (1 - share) + (1 - targets) * share / (B - 1)


def label_match(labels: Tensor) -> Tensor:
    """Each image belongs evenly to all texts of its label: [b] -> [b, B]. Yang et al. 2022 (2204.03610)."""
    same = (labels[:, None] == gather(labels)).float()  # [b, B]
    return same / same.sum(1, keepdim=True)


def text_hash(texts: Sequence[str], device: torch.device | str | None = None) -> Tensor:
    """Each image belongs evenly to all texts that say the same, up to case, punctuation and spaces: [b, B].

    Florence's way of finding labels in captions (2111.11432).
    """
    mine = [normalise_text(text) for text in texts]
    everyone = [text for part in gather_objects(mine) for text in part]
    index = {text: i for i, text in enumerate(dict.fromkeys(everyone))}
    rows, columns = (torch.tensor([index[text] for text in group], device=device) for group in (mine, everyone))
    same = (rows[:, None] == columns).float()  # [b, B]
    return same / same.sum(1, keepdim=True)


def normalise_text(text: str) -> str:
    """'A  dog, running!' -> 'a dog running'; a text without any letter or digit stays as it is."""
    words = re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()
    return words or text


@torch.no_grad()
def transport(
    z_image: Tensor, z_text: Tensor, *, epsilon: float = 0.15, rounds: int = 5, direction: str = "i2t"
) -> Tensor:
    """OTTER: the best joint matching of images and texts by a teacher, each pair itself left out.

    The pairs themselves get (almost) no mass; they enter through the hard InfoNCE term beside this one.

    Args:
        z_image, z_text: [b, D] unit rows of the teacher.
        epsilon: lambda in the paper. rounds: 5 in the paper, which does not converge, nor need it.
        direction: "i2t" or "t2i"; rows are images or texts.

    Returns:
        [b, B], the rows of this process.

    Raises:
        ValueError: fewer than 2 pairs (no other text to match), or an unknown direction.

    Wu et al. 2021 (2112.09445).
    """
    z_image, z_text = gather(z_image), gather(z_text)  # [B, D]
    B = len(z_image)
    if B < 2 or direction not in ("i2t", "t2i"):
        raise ValueError(
            f"transport(direction={direction!r}) on {B} pairs: expected 'i2t' or 't2i' and at least 2 pairs, "
            "since a pair is never matched with itself."
        )
    cross = similarity(z_image, z_text) if direction == "i2t" else similarity(z_text, z_image)
    score = cross + similarity(z_image, z_image) + similarity(z_text, z_text)  # [B, B]
    score.diagonal().sub_(200)  # 100 for each of the two self-similarities
    plan = sinkhorn(score, epsilon, rounds)
    return _mine(plan / plan.sum(1, keepdim=True))


@torch.no_grad()
def nearest_neighbour(z_text: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    """DeCLIP: replace each text by its nearest older text, which then is the positive instead.

    Args:
        z_text: [b, D] unit rows. queue: [K, D] unit rows.

    Returns:
        (neighbours [b, D] to contrast with, targets [b, B] over them). Images whose texts have the same
        neighbour share it: unlike the identity, the targets do not call one neighbour both right and wrong.

    Li et al. 2021 (2110.05208).
    """
    nearest = similarity(z_text, queue).argmax(1)  # [b]
    neighbours = queue[nearest]
    everyone = gather(neighbours)  # [B, D]
    same = (neighbours[:, None] == everyone).all(-1).float()  # [b, B]
    return neighbours, same / same.sum(1, keepdim=True)


@torch.no_grad()
def momentum_softmax(
    z_image: Tensor, z_text: Tensor, scale: Tensor | float, *, alpha: float = 0.4, hard: Tensor | None = None
) -> Tensor:
    """ALBEF: alpha * softmax of a momentum model's logits + (1 - alpha) * the pairs themselves: [b, B].

    Args:
        z_image, z_text: [b, D] unit rows of the momentum model. Swap them for text-to-image targets.
        scale: 1 / tau. alpha: 0 gives `hard` back; ALBEF raises it from 0 to 0.4 over the first epoch.
        hard: [b, B]; None for the identity.

    Li et al. 2021 (2107.07651).
    """
    hard = identity(len(z_image), z_image.device) if hard is None else hard
    return alpha * (scale * similarity(z_image, gather(z_text))).softmax(1) + (1 - alpha) * hard


def mixup(b: int, share: float, device: torch.device | str | None = None) -> Tensor:
    """ZeroVL: sample i was mixed as share * x_i + (1 - share) * x_(b-1-i), so is its target: [b, B].

    The partner is that of the reversed batch of this process (`x.flip(0)`). Cui et al. 2021 (2112.09331).
    """
    if not 0 <= share <= 1:
        raise ValueError(f"mixup(share={share}): expected a share in [0, 1], drawn from Beta(0.1, 0.1) in ZeroVL.")
    eye = identity(b, device)
    return share * eye + (1 - share) * eye.flip(0)


def _mine(everyone: Tensor) -> Tensor:
    b = len(everyone) // world_size()
    return everyone[rank() * b : (rank() + 1) * b]
