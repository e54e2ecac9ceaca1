"""Pair selection: is the right caption nearer to its picture than one that says nearly the same, but is false?

The controls swap attributes, relations or the order of words, so that a bag of words cannot tell (ARO, 2210.01936;
Winoground, 2204.03162). Scenes make their own; other data bring a column `negatives`: a list, or {kind: caption}.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from emblema.core.card import TaskCard
from emblema.core.errors import BadData
from emblema.data.datasets import columns
from emblema.data.scenes import Scenes, swapped
from emblema.tasks import metrics
from emblema.tasks.base import Outcome, Task
from emblema.tasks.clips import vectors
from emblema.tasks.places import TIE
from emblema.tasks.statistics import bootstrap, mean_of

ANY = "any"  # the kind of controls that come without one


@dataclass(kw_only=True)
class PairSelection(Task):
    card = TaskCard(
        name="pair-selection",
        title="Pair selection with swapped words",
        section="3.4 retrieval",
        metric="accuracy",
        needs=("texts", "negatives"),
    )
    resamples: int = 1000  # of the bootstrap

    @torch.inference_mode()
    def run(self, model, data) -> Outcome:
        triples = controls(data)
        texts = list(dict.fromkeys(t for _, right, wrong, _ in triples for t in (right, wrong)))
        number = {t: i for i, t in enumerate(texts)}
        z_text, z_image = model.embed_texts(texts), vectors(model, data)
        rows = lambda k: torch.tensor([number[t[k]] for t in triples])
        owner = torch.tensor([t[0] for t in triples])
        near = lambda which: (z_image[owner] * z_text[which]).sum(-1)
        return score(near(rows(1)), near(rows(2)), owner, [t[3] for t in triples], self.resamples)

    def options(self) -> dict:
        return {"tie": TIE}


def controls(data) -> list[tuple[int, str, str, str]]:
    """(record, right caption, wrong caption, kind of swap) of every control."""
    if isinstance(data, Scenes):
        made = [(i, record, swapped(record)) for i, record in enumerate(data)]
        return [(i, record.text or "", wrong, kind) for i, record, of in made for kind, wrong in of.items()]
    texts, negatives = columns(data, "text", "negatives")
    if not any(negatives):
        raise BadData(
            f"{data.card.name} has no false captions to choose against: give its table a column `negatives`, captions "
            'separated by |, or {"order": "...", "attribute": "..."}'
        )
    found = []
    for i, (right, of) in enumerate(zip(texts, negatives)):
        pairs = of.items() if isinstance(of, Mapping) else ((ANY, wrong) for wrong in of or ())
        for kind, wrongs in pairs:
            for wrong in [wrongs] if isinstance(wrongs, str) else wrongs or ():
                if not right or wrong == right:
                    what = "has no caption" if not right else f"has its own caption {right!r} among the false ones"
                    raise BadData(f"record {i} of {data.card.name} {what}: correct the table")
                found.append((i, right, wrong, kind))
    return found


def score(right: Tensor, wrong: Tensor, owner: Tensor, kinds: list[str], resamples: int = 1000) -> Outcome:
    """Accuracy from the similarities [P] of right and wrong captions; a tie (within `TIE`) is wrong.

    `owner` [P] is the picture of each pair. Intervals are over pictures, for pairs of one picture are not independent.
    `all_right` is the share of pictures that beat all of their controls.
    """
    metrics.refuse_nan(right, "similarities of right captions")
    metrics.refuse_nan(wrong, "similarities of wrong captions")
    won = (right > wrong + TIE).double()

    def accuracy(inside: Tensor):
        pictures, place = owner[inside].unique(return_inverse=True)
        sums = torch.zeros(2, len(pictures), dtype=torch.float64)
        sums.index_add_(1, place, torch.stack([won[inside], torch.ones(len(place), dtype=torch.float64)]))
        statistic = lambda weights: (weights @ sums[0]) / (weights @ sums[1])
        return bootstrap(statistic, len(pictures), resamples=resamples), sums

    everything, sums = accuracy(torch.ones(len(owner), dtype=torch.bool))
    out = {"accuracy": everything}
    table = []
    for kind in sorted(set(kinds)):
        inside = torch.tensor([k == kind for k in kinds])
        out[f"accuracy/{kind}"] = accuracy(inside)[0]
        table.append({"kind": kind, "pairs": int(inside.sum()), **out[f"accuracy/{kind}"].to_json()})
    out["all_right"] = bootstrap(mean_of(sums[0] == sums[1]), sums.shape[1], resamples=resamples)
    sizes = {"images": sums.shape[1], "pairs": len(owner)}
    return Outcome(metrics=out, tables={"per_kind": table}, sizes=sizes, notes=["a guess is right half of the time"])
