"""FILIP: an image and a text are as similar as their parts: each patch to its best word, each word to its best patch.

Only the comparison differs from CLIP, and it happens after the towers. What `encode_image` and `encode_text` give is
the mean of the tokens, for tasks that want one vector; `late_interaction` on `encode_patches` and `encode_words`
is the similarity that was trained.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from emblema.core.batch import Batch
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.encoders.vit import ViTConfig
from emblema.objectives.late_interaction import late_contrastive
from emblema.pretrain.base import Encoders, Learnt, Pretrain


@dataclass(kw_only=True)
class FILIP(Pretrain):
    card = Card(
        name="filip",
        title="FILIP: Fine-grained Interactive Language-Image Pre-Training",
        paper="2111.07783",
        year=2022,
        section="5.1 contrastive",
        equation="L = 1/2 [CE_j(s mean_p max_l <u_ip, w_jl>) + CE_i(s mean_l max_p <u_ip, w_jl>)]",
        needs=("texts",),
        objectives=("contrastive",),
        claim="same pairs and steps, a ViT: token-wise retrieval of FILIP > global retrieval of CLIP (R@1)",
        oracle="loops over images, texts, patches and words; open_clip.loss.ClipLoss at one patch and one word",
        deviations=(
            "all tokens are compared, in chunks; the paper keeps the quarter with the highest scores to save memory",
            "the tokens live in the joint space of the architecture (256 dimensions in the paper)",
            "AdamW instead of LAMB: batches here are small",
            "no back-translation: where a record has several captions one is drawn at each access",
        ),
    )
    optim: Optim = field(default_factory=lambda: Optim(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-8))

    def config(self) -> Any:
        shape = super().config()
        image = replace(shape.image, pool="mean") if isinstance(shape.image, ViTConfig) else shape.image
        return replace(shape, image=image, text=replace(shape.text, pool="mean"))

    def encoders(self, module: Learnt) -> Encoders:
        vlm = module["vlm"]

        def words(batch: Batch) -> Tensor:
            w, real = vlm.encode_words(batch.texts)  # [B, L, D], [B, L]
            return F.pad(w * real[..., None], (0, 0, 0, vlm.text.context_length - w.shape[1]))  # [B, context, D]

        return {
            "patches": lambda batch: vlm.encode_patches(batch.images).flatten(1, 2),  # [B, P, D]
            "words": words,
        }

    def compare(self, module: Learnt, z: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        return {"token_wise": late_contrastive(z["patches"], z["words"], module["vlm"].scale)}
