"""CLIP: each image finds its own text among the batch, each text its own image.

Two towers are compared by cosine similarity under a learned scale; the other pairs of the batch are the
negatives. The scale is learnt as a logarithm and kept at or below 100.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from emblema.core.batch import Batch
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.objectives.contrastive import image_text_contrastive
from emblema.pretrain.base import Encoders, Learnt, Pretrain


@dataclass(kw_only=True)
class CLIP(Pretrain):
    card = Card(
        name="clip",
        title="Learning Transferable Visual Models From Natural Language Supervision",
        paper="2103.00020",
        year=2021,
        section="5.1 contrastive",
        equation="L = 1/2 [CE(s z_I z_T^T) + CE(s z_T z_I^T)]  (Eqs. 2-3)",
        needs=("texts",),
        objectives=("contrastive",),
        claim="an ensemble of templates >= the bare class name (zero-shot top-1)",
        oracle="open_clip.loss.ClipLoss",
    )
    optim: Optim = field(default_factory=lambda: Optim(lr=1e-3, weight_decay=0.2, betas=(0.9, 0.98), eps=1e-6))

    def encoders(self, module: Learnt) -> Encoders:
        vlm = module["vlm"]
        return {
            "image": lambda batch: vlm.encode_image(batch.images),  # [B, D]
            "text": lambda batch: vlm.encode_text(batch.texts),  # [B, D]
        }

    def compare(self, module: Learnt, z: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        return {"image_text": image_text_contrastive(z["image"], z["text"], module["vlm"].scale)}
