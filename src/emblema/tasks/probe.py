"""Multinomial logistic regression on frozen features, its C chosen on validation: what a linear probe learns.

What chooses C is never handed the test split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from emblema.core.batch import Level
from emblema.core.errors import BadData
from emblema.data import fewshot
from emblema.parts.logistic import COARSE, HALVINGS, choose_c, fit, stratified
from emblema.tasks.base import Predictor, labels_of
from emblema.tasks.clips import vectors

HELD_OUT = 0.2  # of the training images, where a set has no validation split
MOST_VALIDATION = 4  # validation images a class of few-shot runs (CoOp)


class Probed(NamedTuple):
    """What a probe says about the evaluated records, and how it came about."""

    logits: Tensor  # [N, C]
    path: list[tuple[float, float]]  # (C, validation accuracy)
    notes: list[str]
    count: int  # training images of the last fit
    draw: list[str]  # keys of the few-shot draw


def probed(
    model: Any,
    data: Any,
    train: Any,
    val: Any,
    level: str,
    shots: int = 0,
    seed: int = 1,
    path: Sequence[float] = COARSE,
    halvings: int = HALVINGS,
    frames: int = 8,
) -> Probed:
    """Fit on `train`, choose C on `val` (or on a fifth of `train`), and only then read `data`.

    With all images the last fit is on training and validation images together (CLIP); with `shots` on the draw alone,
    and C is chosen on min(shots, 4) validation images a class (CoOp).
    """
    if level not in ("hidden", "joint"):
        raise BadData(f'no feature level {level!r}: "hidden" is before the projection, "joint" after')
    if train is None:
        raise BadData(f"{data.card.name}: a linear probe needs a training split")
    if isinstance(model, Predictor):
        raise BadData("a linear probe needs features; a fitted system gives scores. Measure it with zero-shot")
    if shots:
        train = fewshot.few_shot(train, shots, seed)
        val = fewshot.few_shot(val, min(shots, MOST_VALIDATION), seed) if val is not None else None
    read = lambda records: (
        vectors(model, records, level if level == "hidden" else Level.POOLED, frames),
        labels_of(records),
    )
    (x, y), classes, notes = read(train), len(data.class_names), []
    if val is not None:
        x_val, y_val = read(val)
        chosen = choose_c(x, y, x_val, y_val, classes, path, halvings)
        if not shots:
            x, y = torch.cat((x, x_val)), torch.cat((y, y_val))
    else:
        inner, outer = stratified(y, HELD_OUT)
        if not len(outer):
            raise BadData(
                f"{data.card.name} has no validation split, and its {len(y)} training images leave none to hold out: "
                "C must be chosen on something. Take at least 2 images a class"
            )
        chosen = choose_c(x[inner], y[inner], x[outer], y[outer], classes, path, halvings)
        notes.append(f"no validation split: C was chosen on {len(outer)} held-out training images")
    probe = fit(x, y, classes, chosen.c, chosen.start)
    if chosen.c in (chosen.path[0][0], chosen.path[-1][0]):
        notes.append(f"C = {chosen.c:g} is the end of the path: widen --c-path")
    notes.insert(0, f"features: {level} ({x.shape[1]} dimensions), C = {chosen.c:g}")
    logits = probe(read(data)[0])
    return Probed(logits, chosen.path, notes, len(x), list(train.keys) if shots else [])
