"""FIBER: two towers that are compared alone and matched together, their last layers reading each other through a gate.

Contrast needs the towers apart, so that any image meets any text; matching and hidden words need them together. One
set of weights serves both: a gate of 0 in each fused layer gives the towers back. Pairs that contrast finds hard, of
the batch or of a queue of earlier samples, are what matching learns from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from dataclasses import replace as changed
from typing import Any

import torch
from torch import Tensor

from emblema.core.batch import Batch
from emblema.core.card import Card
from emblema.core.errors import NoSuchDoor
from emblema.core.gather import gather
from emblema.core.method import Optim
from emblema.encoders.text import TextConfig
from emblema.encoders.tokenizers import TextIds
from emblema.encoders.vit import ViTConfig
from emblema.frameworks.fused import FusedTowers
from emblema.objectives.alignment import hard_negatives, image_text_matching
from emblema.objectives.contrastive import queued_contrastive, similarity
from emblema.parts.masked_words import MaskedWords, token_mean
from emblema.parts.queue import SampleQueue
from emblema.pretrain.base import Learnt, Pretrain


@dataclass(kw_only=True)
class FIBER(Pretrain):
    card = Card(
        name="fiber",
        title="Coarse-to-Fine Vision-Language Pre-training with Fusion in the Backbone",
        paper="2206.07643",
        year=2022,
        section="5.3 alignment",
        equation="L = L_ITC + L_MLM + L_ITM,  a <- a + alpha Cross(LN(a), y) in fused layers  (Eqs. 2-3, 7, 10)",
        framework="two-leg",
        needs=("texts",),
        objectives=("contrastive", "generative", "alignment"),
        claim="re-ranked by matching, the ten best of contrast have a higher R@1 than contrast alone",
        oracle="alpha = 0: the towers alone; torch.nn.MultiheadAttention; with no queue the value of open_clip's loss",
        deviations=(
            "the first stage only; the second trains GLIP's region-word term on the same backbone",
            "a ViT and a text transformer, both pre-norm, from random weights; a trained Swin and RoBERTa in the paper",
            "the queue starts empty (random features in the code) and is 512 samples long (4096)",
            "a text that says the same as the pair's is never drawn; the code excludes the pair only",
            "older features join the contrast with contrast_queue=True only: the paper's rate of 0.00001 hardly moves "
            "the weights that they are of; at 0.001, from random weights, they undo what is learnt",
            "one learning rate, a hundredth of it for the temperature; five times it for what is fused in the code",
        ),
    )
    fused_layers: int | None = None  # None: half of the shallower tower; 6 of 12 in the paper
    queue: int = 512  # K, samples that hard wrong pairs are drawn from besides the batch
    contrast_queue: bool = False  # their features, as they were, are negatives of the contrast too
    mask: float = 0.15  # share of words hidden
    optim: Optim = field(default_factory=lambda: Optim(lr=1e-3, weight_decay=0.01, betas=(0.9, 0.98), eps=1e-8))

    def config(self) -> Any:
        shape = super().config()
        image, text = shape.image, shape.text
        if not isinstance(image, ViTConfig) or not isinstance(text, TextConfig):
            raise NoSuchDoor(f"fiber fuses a ViT with a text transformer: {self.arch} has others")
        return FusedTowers(
            image=image,
            text=changed(text, causal=False),
            dim=shape.dim,
            scale="fiber",
            fused_layers=self.fused_layers or max(min(image.depth, text.depth) // 2, 1),
        )

    def build(self) -> Learnt:
        module = super().build()
        vlm = module["vlm"]
        side, length = vlm.image.image_size, vlm.text.context_length
        module["words"] = MaskedWords(vlm.text.width, vlm.text.words.num_embeddings)
        one = {
            "z_image": torch.empty(vlm.dim),
            "z_text": torch.empty(vlm.dim),
            "images": torch.empty(3, side, side, dtype=torch.uint8),
            "ids": torch.empty(length, dtype=torch.long),
            "length": torch.empty((), dtype=torch.long),
        }
        module["queue"] = SampleQueue(self.queue, one)
        return module

    def rate(self, name: str) -> float:
        return 0.01 if name.startswith("vlm.logit_scale") else 1.0  # tau itself is learnt, and it is small

    def losses(self, module: Learnt, batch: Batch) -> dict[str, Tensor]:
        vlm, older = module["vlm"], module["queue"].read()
        ids = vlm.text.tokenize(batch.texts).to(vlm.text.words.weight.device)
        z_image, z_text = vlm.encode_image(batch.images), vlm.encode_text(ids)  # the towers alone
        noise = batch.noise("mask", 3, vlm.text.context_length)
        hidden, words = module["words"].hide(vlm.text, ids, noise, self.mask)
        _, read = vlm.encode_pair(batch.images, hidden)  # words hidden from the text are in the image
        own = {"z_image": z_image.detach(), "z_text": z_text.detach(), "images": batch.images, "length": ids.length}
        own["ids"] = padded(ids, vlm.text.context_length)
        K = len(module["queue"]) if self.contrast_queue else 0
        terms = {
            "image_text": queued_contrastive(z_image, z_text, older["z_image"][:K], older["z_text"][:K], vlm.scale),
            "words": token_mean(module["words"].losses(vlm.text.norm(read.x), words)),
            "matching": self.matching(vlm, own, older, batch.noise("negatives", 2)),
        }
        if module.training:
            module["queue"].push(**{name: gather(rows) for name, rows in own.items()})
        return terms

    def matching(self, vlm: Any, own: dict[str, Tensor], older: dict[str, Tensor], noise: Tensor) -> Tensor:
        """Each pair, its image with a hard wrong text, its text with a hard wrong image."""
        every = {name: torch.cat([rows, older[name]]) for name, rows in own.items()}  # [B + K, ...]
        B = len(own["ids"])
        said = every["ids"].unique(dim=0, return_inverse=True)[1]  # [B + K] equal where the words are
        equal = said[:B, None] == said
        to_text = vlm.scale * similarity(own["z_image"], every["z_text"])  # [B, B + K]
        to_image = vlm.scale * similarity(own["z_text"], every["z_image"])
        text, image = (hard_negatives(s, equal, n) for s, n in ((to_text, noise[:, 0]), (to_image, noise[:, 1])))
        found = text >= 0  # both have one or neither has: equal texts are the same rows
        rows = torch.arange(B, device=text.device)
        which_image = torch.cat([rows, rows[found], image[found]])
        which_text = torch.cat([rows, text[found], rows[found]])
        length = every["length"][which_text]
        ids = TextIds(every["ids"][which_text, : int(length.max())], length)
        logits = vlm.match(every["images"][which_image], ids)  # [B + 2 F, 2]
        return image_text_matching(logits, torch.arange(len(logits), device=logits.device) < B)


def padded(ids: TextIds, size: int) -> Tensor:
    """Ids at the full context, 0 behind each text: [B, size]"""
    out = ids.ids.new_zeros(len(ids), size)
    out[:, : ids.ids.shape[1]] = ids.ids
    behind = torch.arange(size, device=out.device) >= ids.length[:, None]
    return out.masked_fill(behind, 0)
