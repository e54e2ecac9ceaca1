"""CoCa: one pass over a pair compares it with others (Con) and writes the caption word by word (Gen).

The text decoder is cut in two: its lower half never sees the image and gives the text's vector, its upper half reads
the image. So contrast and caption share nearly all their work, and the model can be asked for captions.
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
from emblema.encoders.text import TextConfig
from emblema.encoders.vit import ViTConfig
from emblema.frameworks.captioner import Captioners
from emblema.objectives.contrastive import image_text_contrastive
from emblema.parts.decoder import next_words
from emblema.parts.masked_words import token_mean
from emblema.pretrain.base import Encoders, Learnt, Pretrain


@dataclass(kw_only=True)
class CoCa(Pretrain):
    card = Card(
        name="coca",
        title="CoCa: Contrastive Captioners are Image-Text Foundation Models",
        paper="2205.01917",
        year=2022,
        section="5.2 generative",
        equation="L = 1.0 C(z_I, z_T) - 2.0 mean_l log p(w_l | w_<l, x)  (Eqs. 2-3 and 9)",
        framework="two-leg",
        needs=("texts",),
        objectives=("contrastive", "generative"),
        claim="captions cost fewer nats a word with their own image than with another one",
        oracle="open_clip.loss.CoCaLoss(caption_loss_weight=2, clip_loss_weight=1)",
        deviations=(
            "32 queries of the captioning pooler (256 in the paper): pictures here have 16 to 64 patches",
            "AdamW instead of Adafactor: the model fits into memory many times over",
            "the text's own token stands behind the last word and not at the end of the context: padding lies after it",
            "the image tower keeps its [CLS] as one more token to be pooled, so it starts as that of other systems",
        ),
    )
    queries: int = 32  # of the captioning pooler
    decoder_depth: int | None = None  # layers of the upper half; None: as many as the text tower has
    weight_image_text: float = 1.0
    weight_caption: float = 2.0
    optim: Optim = field(default_factory=lambda: Optim(lr=8e-4, weight_decay=0.01, betas=(0.9, 0.98), eps=1e-6))

    def config(self) -> Any:
        shape = super().config()
        if not isinstance(shape.image, ViTConfig) or not isinstance(shape.text, TextConfig):
            raise NoSuchDoor(f"coca pools tokens of a ViT and decodes with a CLIP text tower: {self.arch} has others")
        return Captioners(
            image=replace(shape.image, pool="cascade", queries=self.queries),
            text=replace(shape.text, pool="token"),
            dim=shape.dim,
            scale=shape.scale,
            decoder_depth=self.decoder_depth or shape.text.depth,
        )

    def encoders(self, module: Learnt) -> Encoders:
        vlm = module["vlm"]

        def pair(batch: Batch) -> Tensor:
            ids = vlm.text.tokenize(batch.texts).to(vlm.text.words.weight.device)
            z_image, z_text, logits = vlm.encode_pair(batch.images, ids)
            return torch.cat([z_image, z_text, next_words(logits, ids.ids, ids.length)], 1)  # [B, 2 D + 2]

        return {"pair": pair}

    def compare(self, module: Learnt, z: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        D = module["vlm"].dim
        z_image, z_text, words = z["pair"].split([D, D, 2], 1)
        contrast = image_text_contrastive(z_image, z_text, module["vlm"].scale)
        return {
            "image_text": self.weight_image_text * contrast,
            "caption": self.weight_caption * token_mean(words),
        }
