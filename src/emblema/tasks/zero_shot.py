"""Zero-shot classification: the class whose text is nearest to the picture.

Each class name is written into every template; the unit text vectors are averaged and normalised again. Class
names and templates are those of the data set, so that a number means the same for every model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from emblema.core.card import TaskCard
from emblema.core.errors import BadData
from emblema.tasks.base import Outcome, Predictor, Task, labels_of
from emblema.tasks.classification import scored
from emblema.tasks.protocols import template_id
from emblema.tasks.token_wise import TokenWise
from emblema.tasks.wording import chosen_templates, scores_of, wording


@dataclass(kw_only=True)
class ZeroShot(Task):
    card = TaskCard(
        name="zero-shot",
        title="Zero-shot classification",
        section="3.4 classification",
        metric="top1",
        needs=("labels",),
    )
    templates: str = ""  # a template set, or a text file with a template a line; default: the data set's own
    search: int = 0  # choose at most so many of the templates, greedily, on the validation split; 0: use all
    token_wise: bool = False  # late interaction of patches and words (FILIP) instead of one vector each
    resamples: int = 1000  # of the bootstrap

    @torch.inference_mode()
    def run(self, model, data, *, val=None) -> Outcome:
        labels, (_, templates) = labels_of(data), wording(self.templates, data)
        steps = []
        if self.search:
            templates, steps = self._searched(model, data, val, templates)
        scores = TokenWise(model, templates).scores(data) if self.token_wise else scores_of(model, data, templates)
        outcome = scored(scores, labels, data, self.resamples)
        outcome.sizes |= {"templates": len(templates)}
        if steps:
            outcome.tables["templates"] = [{"template": t, "validation_top1": a} for t, a in zip(templates, steps)]
            outcome.notes.append(f"templates chosen on the validation split: {'; '.join(templates)}")
        return outcome

    def _searched(self, model, data, val, templates):
        if isinstance(model, Predictor):
            raise BadData("a fitted system has its own texts: a search over templates is for vision-language models")
        if val is None:
            raise BadData(
                f"{data.card.name} has no validation split: templates are never chosen on the pictures that are "
                "measured. Name a set (--templates imagenet), or give the data a val split"
            )
        return chosen_templates(model, val, labels_of(val), templates, self.search)

    def splits(self) -> tuple[str, ...]:
        return ("val",) if self.search else ()

    def variant(self) -> str:
        return "-".join(["searched"] * bool(self.search) + ["token-wise"] * self.token_wise)

    def options(self) -> dict:
        return {k: v for k, v in {"search": self.search, "token_wise": self.token_wise}.items() if v}

    def template_set(self, model, data) -> str:
        return "" if isinstance(model, Predictor) else template_id(*wording(self.templates, data))
