"""Class names as texts: which templates they are written into, and the classifier that the texts make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from emblema.core.errors import BadData, UnknownName
from emblema.tasks.base import Predictor
from emblema.tasks.clips import Frames, holds_clips, vectors


def wording(spec: str, data: Any) -> tuple[str, list[str]]:
    """(identifier, templates) of a named set, of a text file with a template a line, or of the data set."""
    if spec and Path(spec).suffix == ".txt":
        return Path(spec).stem, read_templates(spec)
    from emblema.data import catalog
    from emblema.data.templates import NAMED, published, templates_for

    known = [*NAMED, *published(), *catalog.names()]
    if spec and spec not in known:
        raise UnknownName("template set or .txt file", spec, known)
    return spec or data.card.name, list(templates_for(spec or data.card.name))


def read_templates(path: str | Path) -> list[str]:
    """The lines of a text file; empty ones and comments (#) are left out."""
    if not Path(path).exists():
        raise BadData(f"no file {path}: give a text file with one template a line, {{}} where the class name goes")
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    wrong = next((line for line in found if "{}" not in line), None)
    if not found or wrong is not None:
        raise BadData(f"{path}: {f'{wrong!r} has no {{}}' if wrong else 'no template in it'}; e.g. a photo of a {{}}.")
    return found


@dataclass
class Worded:
    """An embedder as a predictor: the class whose text is nearest. Clips are pooled over `frames` of each."""

    model: Any  # an Embedder with a `vlm`
    templates: Sequence[str]
    frames: int = 8

    @torch.inference_mode()
    def scores(self, data: Any) -> Tensor:
        """Scaled cosines [N, C] on the CPU."""
        z_text = class_vectors(self.model, data.class_names, self.templates)
        z_image = vectors(self.model, data, frames=self.frames)
        return self.model.vlm.logits(z_image.to(self.model.device), z_text.to(self.model.device)).cpu()


def scores_of(model: Any, data: Any, templates: Sequence[str], frames: int = 8) -> Tensor:
    """[N, C] of a predictor, or of an embedder with the class names in `templates`.

    A fitted system is asked `for_classes` where the data name others than it was fitted on. It is shown pictures: of a
    clip its frames, whose scores are averaged.
    """
    if not isinstance(model, Predictor):
        return Worded(model, templates, frames).scores(data)
    fitted: Any = model
    if list(getattr(fitted, "class_names_", data.class_names)) != list(data.class_names):
        fitted = fitted.for_classes(list(data.class_names), data.card.name)
    if holds_clips(data):
        return fitted.scores(Frames(data, frames)).unflatten(0, (len(data), frames)).mean(1)
    return fitted.scores(data)


def class_vectors(model: Any, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """[C, D] unit. Classes with the same name get the same vector (some published lists have such classes)."""
    once = list(dict.fromkeys(names))
    row = {name: i for i, name in enumerate(once)}
    return model.class_vectors(once, templates)[[row[name] for name in names]]


@torch.inference_mode()
def chosen_templates(model: Any, val: Any, labels: Tensor, pool: Sequence[str], most: int, frames: int = 8):
    """Templates of `pool` chosen one after the other for their accuracy on `val`: (templates, accuracy after each).

    Each step adds the template with which the ensemble is right most often; among equals the one of lower
    cross-entropy. It ends when none helps, or with `most`.
    """
    names = list(val.class_names)
    z = torch.stack([class_vectors(model, names, [t]) for t in pool])  # [T, C, D]
    x = vectors(model, val, frames=frames).to(model.device)
    chosen: list[int] = []
    reached: list[tuple[float, float]] = []
    while len(chosen) < min(most, len(pool)):

        def quality(t: int) -> tuple[float, float]:
            w = normalize(z[[*chosen, t]].mean(0), dim=-1)
            logits = model.vlm.logits(x, w.to(model.device)).float().cpu()
            return float((logits.argmax(1) == labels).double().mean()), -float(cross_entropy(logits, labels))

        found = {t: quality(t) for t in range(len(pool)) if t not in chosen}
        best = max(found, key=lambda t: found[t])
        if reached and found[best] <= reached[-1]:
            break
        chosen.append(best)
        reached.append(found[best])
    return [pool[t] for t in chosen], [accuracy for accuracy, _ in reached]
