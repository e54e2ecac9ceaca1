"""CLIPPO: one vision transformer reads pictures and pictures of texts; there is no vocabulary and no text tower.

A caption is drawn in a bitmap font on the canvas of an image and goes through the same patches and blocks. The
objective is CLIP's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from emblema.core.batch import Batch
from emblema.core.card import Card
from emblema.core.errors import NoSuchDoor
from emblema.core.method import Optim
from emblema.encoders.vit import ViTConfig
from emblema.frameworks.one_tower import OneTower
from emblema.objectives.contrastive import image_text_contrastive
from emblema.pretrain.base import Encoders, Learnt, Pretrain

HALF = (0.5, 0.5, 0.5)  # pixels in [-1, 1]: the grey of the page is 0


@dataclass(kw_only=True)
class CLIPPO(Pretrain):
    card = Card(
        name="clippo",
        title="CLIPPO: Image-and-Language Understanding from Pixels Only",
        paper="2212.08045",
        year=2023,
        section="5.1 contrastive",
        equation="L = 1/2 [CE(S) + CE(S^T)], S = s f(x) f(draw(t))^T  (Eqs. 2-3)",
        framework="one-tower",
        needs=("texts",),
        objectives=("contrastive",),
        claim="one shared tower, half the parameters, keeps retrieval R@1 within 5 points of two towers at equal steps",
        oracle="open_clip.loss.ClipLoss; the same array as image and as text gives the same vector",
        deviations=(
            "the imaging library's bitmap font (6 x 11 px, Latin-1) instead of 16 px Unifont; other letters are drawn "
            "as their code, so that no two words look alike",
            "text-text pairs are two captions of one picture; the paper takes neighbouring sentences of C4",
            "AdamW with a cosine instead of Adafactor with an inverse square root",
        ),
    )
    text_pairs: float = 0.0  # share of the batch whose picture is replaced by a drawing of another caption
    optim: Optim = field(default_factory=lambda: Optim(lr=1e-3, weight_decay=1e-4, betas=(0.9, 0.98), eps=1e-8))

    def config(self) -> Any:
        shape = super().config()
        if not isinstance(shape.image, ViTConfig):
            raise NoSuchDoor(
                f"one tower for pictures and texts is a vision transformer; arch={self.arch!r} has a "
                f"{shape.image.kind} image tower. Choose another arch, such as small."
            )
        image = replace(shape.image, pool="map", class_token=False, mean=HALF, std=HALF)
        return OneTower(image=image, dim=shape.dim, scale="siglip")  # log-scale from ln 10, no bound

    def encoders(self, module: Learnt) -> Encoders:
        vlm = module["vlm"]
        return {
            "image": lambda batch: vlm.encode_image(self._pictures(vlm, batch)),  # [B, D]
            "text": lambda batch: vlm.encode_text(batch.texts),  # [B, D]
        }

    def _pictures(self, vlm: Any, batch: Batch) -> Tensor:
        """[B, 3, H, W]; a share of them drawings of another caption, where the data has several."""
        assert batch.images is not None
        if not self.text_pairs or not batch.other_texts:
            return batch.images
        drawn = (batch.noise("text pairs", 1) < self.text_pairs).to(batch.images.device)[
            ..., None, None
        ]  # [B, 1, 1, 1]
        return torch.where(drawn, vlm.text.render(batch.other_texts[0]).to(batch.images.device), batch.images)

    def compare(self, module: Learnt, z: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        return {"image_text": image_text_contrastive(z["image"], z["text"], module["vlm"].scale)}
