"""Survey Eqs. 6-9: fill in what was hidden, or write the caption.

All four average over what was hidden (patches, tokens) in the whole batch, as training code does; the survey
divides by the batch size. Where nothing was hidden the loss is 0 and still has a (zero) gradient, so a short
batch neither makes NaN nor leaves a DDP process without its parameters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100


def patchify(images: Tensor, patch: int) -> Tensor:
    """[B, C, H, W] -> [B, (H/p)(W/p), p*p*C]; a patch is ordered (row, column, channel).

    Raises:
        ValueError: sides that are no multiple of the patch.
    """
    B, C, H, W = images.shape
    if H % patch or W % patch:
        raise ValueError(f"images are {H}x{W}, expected both sides to be multiples of the patch size {patch}.")
    x = images.reshape(B, C, H // patch, patch, W // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(B, (H // patch) * (W // patch), patch * patch * C)


def masked_image_pixels(
    prediction: Tensor, images: Tensor, masked: Tensor, patch: int, *, normalise: bool = True
) -> Tensor:
    """MAE: mean squared error on the pixels of hidden patches.

    Args:
        prediction: [B, P, p*p*C], in the order of `patchify`.
        images: [B, C, H, W], what the encoder was shown a part of.
        masked: [B, P], true where a patch was hidden.
        normalise: bring each target patch to mean 0 and (unbiased) variance 1; predicting 0 then scores about
            1.

    Returns:
        A scalar >= 0, mean over hidden patches.

    He et al. 2021 (2111.06377); survey Eq. 6.
    """
    target = patchify(images, patch).to(prediction.dtype)  # [B, P, p*p*C]
    _same("prediction", prediction.shape, target.shape)
    _same("masked", masked.shape, target.shape[:2])
    if normalise:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    errors = (prediction - target).square().mean(-1)  # [B, P]
    masked = masked.to(errors.dtype)
    return (errors * masked).sum() / masked.sum().clamp(min=1)


def masked_image_tokens(logits: Tensor, codes: Tensor, masked: Tensor) -> Tensor:
    """BEiT: cross-entropy on the discrete codes of hidden patches.

    Args:
        logits: [B, P, K] over a vocabulary of K visual codes.
        codes: [B, P] integers from a frozen tokenizer.
        masked: [B, P], true where a patch was hidden.

    Returns:
        A scalar >= 0, mean over hidden patches.

    Bao et al. 2021 (2106.08254); survey Eq. 6.
    """
    _same("masked", masked.shape, codes.shape)
    return _token_mean(logits, codes.masked_fill(~masked.bool(), IGNORE))


def masked_language(logits: Tensor, targets: Tensor) -> Tensor:
    """BERT: cross-entropy on the tokens that were selected.

    Args:
        logits: [B, L, V].
        targets: [B, L] original ids where a token was selected, -100 elsewhere (`emblema.parts.masking`).

    Returns:
        A scalar >= 0, mean over selected tokens.

    Devlin et al. 2018 (1810.04805); survey Eq. 7.
    """
    return _token_mean(logits, targets)


def masked_cross_modal(
    image_logits: Tensor,
    codes: Tensor,
    masked: Tensor,
    text_logits: Tensor,
    targets: Tensor,
    matched: Tensor,
) -> tuple[Tensor, Tensor]:
    """FLAVA: fill in each modality with the help of the other, on pairs that really belong together.

    The two heads are their own, not those of `masked_image_tokens` and `masked_language`; weigh the terms as
    you like.

    Args:
        image_logits, codes, masked: as `masked_image_tokens`.
        text_logits, targets: as `masked_language`.
        matched: [B], true where image and text are a real pair.

    Returns:
        (image term, text term), two scalars >= 0; both 0 when no pair matches.

    Singh et al. 2022 (2112.04482); survey Eq. 8.
    """
    _same("matched", matched.shape, codes.shape[:1])
    matched = matched.bool()[:, None]  # [B, 1]
    image = masked_image_tokens(image_logits, codes, masked.bool() & matched)
    return image, masked_language(text_logits, targets.masked_fill(~matched, IGNORE))


def captioning(logits: Tensor, ids: Tensor, pad: int) -> Tensor:
    """CoCa: predict each next token; **this function shifts, so pass logits and ids unshifted and aligned**.

    Args:
        logits: [B, L, V]; `logits[:, l]` was computed from `ids[:, : l + 1]`.
        ids: [B, L], the caption with its start and end tokens.
        pad: the id of padding, which is never a target.

    Returns:
        A scalar >= 0, mean over non-pad targets.

    Raises:
        ValueError: logits and ids of different length (a sign that one was shifted already).

    Yu et al. 2022 (2205.01917); survey Eq. 9.
    """
    if logits.shape[:2] != ids.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} and ids {tuple(ids.shape)} differ in length, expected [B, L, V] "
            "and [B, L]. Pass both unshifted: captioning() drops the last logit and the first id itself."
        )
    targets = ids[:, 1:]  # [B, L-1]
    return _token_mean(logits[:, :-1], targets.masked_fill(targets == pad, IGNORE))


def _token_mean(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy averaged over targets that are not -100; 0 with a gradient graph when there are none."""
    _same("targets", targets.shape, logits.shape[:-1])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)  # [N, V]
    total = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE, reduction="sum")
    return total / (targets != IGNORE).sum().clamp(min=1)


def _same(name: str, arrived: torch.Size, expected: torch.Size) -> None:
    if arrived != expected:
        raise ValueError(f"{name} arrived as {tuple(arrived)}, expected {tuple(expected)}.")
