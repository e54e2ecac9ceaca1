"""UniCL: pictures with labels and pictures with captions in one loss; all texts of a label are its pictures' positives.

A labelled picture is captioned by its class name in a template, drawn anew at each access. That matters: where the
texts of a label are identical, the loss is CLIP's, in value and gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from emblema.core.batch import Batch, Dataset
from emblema.core.card import Card
from emblema.core.errors import BadData
from emblema.core.gather import rank
from emblema.core.method import Optim
from emblema.data.captioned import prompted
from emblema.data.templates import IMAGENET, templates_for
from emblema.objectives.contrastive import image_text_label_contrastive
from emblema.pretrain.base import Encoders, Learnt, Pretrain


@dataclass(kw_only=True)
class UniCL(Pretrain):
    card = Card(
        name="unicl",
        title="Unified Contrastive Learning in Image-Text-Label Space",
        paper="2204.03610",
        year=2022,
        section="5.1 contrastive",
        equation="L = 1/2 [CE(S, Y) + CE(S^T, Y)], Y_ij = 1[y_i = y_j] / |P(i)|  (Eqs. 4-5)",
        needs=("texts", "labels"),
        objectives=("contrastive",),
        claim="labels, captions and a template drawn per access: UniCL > CLIP on the same batches (zero-shot top-1)",
        oracle="torch.nn.functional.cross_entropy with probability targets",
        deviations=(
            "the mean over rows and both directions, as training code of this family does; Eqs. 4-5 are sums",
            "towers are those of the architecture (Swin or Focal in the paper)",
        ),
    )
    label: str = "label"  # the column of the data that says which pictures belong together, e.g. "concept"
    optim: Optim = field(default_factory=lambda: Optim(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-8))

    def config(self) -> Any:
        return replace(super().config(), scale="unicl")

    def prepare(self, data: Dataset) -> Dataset:
        templates = templates_for(data.card.name)
        templates = templates if len(templates) > 1 else IMAGENET  # one template would make this CLIP's loss
        if self.label == "label":
            return prompted(data, templates)
        if self.label not in getattr(data, "columns", ()):
            known = ", ".join(getattr(data, "columns", ())) or "none"
            raise BadData(f"label={self.label!r}: {data.card.name} has no such column; its columns: {known}")
        return prompted(data, templates, data.column(self.label))  # type: ignore[attr-defined]

    def encoders(self, module: Learnt) -> Encoders:
        vlm = module["vlm"]
        return {
            "image": lambda batch: vlm.encode_image(batch.images),  # [B, D]
            "text": lambda batch: vlm.encode_text(batch.texts),  # [B, D]
        }

    def compare(self, module: Learnt, z: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        labels = own_labels(batch).to(z["image"].device)
        return {"image_text_label": image_text_label_contrastive(z["image"], z["text"], labels, module["vlm"].scale)}


def own_labels(batch: Batch) -> Tensor:
    """[b] labels; a pair without one gets a negative number that no other pair of the joint batch has."""
    alone = -1 - torch.arange(len(batch)) - rank() * len(batch)
    return alone if batch.labels is None else torch.where(batch.labels.cpu() < 0, alone, batch.labels.cpu())
