"""SLIP: CLIP, and SimCLR on two more views of each image.

The image-image term has its own head on the feature before the projection, so the joint space is left
to the image-text term. Three image passes a step: compare with CLIP at equal steps and at equal compute.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.batch import Batch
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.objectives.contrastive import image_text_contrastive, nt_xent
from emblema.parts.views import SIMCLR
from emblema.pretrain.base import Encoders, Learnt, Pretrain


@dataclass(kw_only=True)
class SLIP(Pretrain):
    card = Card(
        name="slip",
        title="SLIP: Self-supervision meets Language-Image Pre-training",
        paper="2112.12750",
        year=2022,
        section="5.1 contrastive",
        equation="L = L_CLIP + w NT-Xent(h(v_1), h(v_2); t = 0.1)  (Eqs. 1-3)",
        needs=("texts", "views"),
        objectives=("contrastive",),
        claim="with the same pairs and steps, SLIP's linear probe beats CLIP's",
        oracle="open_clip.loss.ClipLoss + lightly.loss.NTXentLoss(0.1)",
        deviations=(
            "the head's hidden width is a field (4096 in the paper): the towers trained here are 20 times smaller",
            "gradients pass through the gather of both terms; the official CLIP term gathers without (issue 31)",
            "the CLIP view is that of CLIP here (crop, flip, light colour), so that both see the same; no flip in code",
        ),
    )
    views: int = 2
    temperature: float = 0.1
    weight: float = 1.0  # of the image-image term
    hidden: int = 512  # of the head
    head_dim: int = 256  # of what it gives
    optim: Optim = field(default_factory=lambda: Optim(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-8))

    def loading(self) -> dict[str, Any]:
        return {"further_view": SIMCLR}

    def build(self) -> Learnt:
        module = super().build()
        width, hidden = module["vlm"].image.width, self.hidden
        module["head"] = nn.Sequential(
            *(nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
            *(nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
            nn.Linear(hidden, self.head_dim),
        )
        return module

    def encoders(self, module: Learnt) -> Encoders:
        vlm = module["vlm"]
        tower = vlm.image

        def before_projection(images: Tensor) -> Tensor:
            return tower.pool(tower.transform(tower.embed(images)))  # [B, width]

        return {
            "image": lambda batch: vlm.encode_image(batch.images),  # [B, D]
            "text": lambda batch: vlm.encode_text(batch.texts),  # [B, D]
            "view_1": lambda batch: before_projection(batch.views[0]),
            "view_2": lambda batch: before_projection(batch.views[1]),
        }

    def compare(self, module: Learnt, z: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        h_1, h_2 = (F.normalize(module["head"](z[k]).float(), dim=-1) for k in ("view_1", "view_2"))
        return {
            "image_text": image_text_contrastive(z["image"], z["text"], module["vlm"].scale),
            "image_image": self.weight * nt_xent(h_1, h_2, self.temperature),
        }
