"""DeCLIP: more supervision from each pair: two views, two texts, older texts that say nearly the same, hidden words.

Every view is compared with every text; the views teach each other (SimSiam); each view also finds the nearest
neighbour of its text in a bank of older texts; and the text tower predicts words that were hidden from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.batch import Batch
from emblema.core.card import Card
from emblema.core.gather import gather, world_size
from emblema.core.method import Optim
from emblema.frameworks.vlm import unit
from emblema.objectives.contrastive import image_text_contrastive
from emblema.parts.masked_words import MaskedWords
from emblema.parts.queue import FeatureQueue
from emblema.parts.views import MOCO
from emblema.parts.words import EDA_NUMBERS, eda
from emblema.pretrain.base import Encoders, Learnt, Pretrain


@dataclass(kw_only=True)
class DeCLIP(Pretrain):
    card = Card(
        name="declip",
        title="Supervision Exists Everywhere: A Data Efficient Contrastive Language-Image Pre-training Paradigm",
        paper="2110.05208",
        year=2022,
        section="5.1 contrastive",
        equation="L = .4 mean_kl C(v_k, t_l) + .2 mean_kl CE(v_k, NN(t_l)) + .2 L_SimSiam + .2 L_MLM",
        needs=("texts", "views"),
        objectives=("contrastive", "generative"),
        claim="with the same pairs and steps, DeCLIP > CLIP (zero-shot top-1)",
        oracle="open_clip.loss.ClipLoss, lightly.loss.NegativeCosineSimilarity, transformers' collator of masked words",
        deviations=(
            "the second text is made by swapping and deleting words; synonyms need WordNet, which does not ship",
            "the neighbour term is 0 until the bank holds real texts only; the official code starts with random ones",
            "the bank is a ring in the checkpoint; the official one is lost on resume and drops what would overflow it",
            "the hidden widths of the SimSiam head are fields (1024 and 512 in the paper): smaller towers are trained",
        ),
    )
    views: int = 1  # v_2; v_1 is the image itself
    bank: int = 65536  # texts that neighbours are looked for among
    mask: float = 0.15  # share of words hidden
    weight_image_text: float = 0.4
    weight_neighbour: float = 0.2
    weight_image_image: float = 0.2
    weight_words: float = 0.2
    hidden: int = 512  # of the SimSiam projector
    bottleneck: int = 256  # of its predictor
    optim: Optim = field(default_factory=lambda: Optim(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-8))

    def config(self) -> Any:
        return replace(super().config(), scale="declip")

    def loading(self) -> dict[str, Any]:
        return {"view": MOCO}

    def build(self) -> Learnt:
        module = super().build()
        vlm, hidden = module["vlm"], self.hidden
        module["projector"] = nn.Sequential(
            *(nn.Linear(vlm.dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
            *(nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
            *(nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden)),
        )
        module["predictor"] = nn.Sequential(
            *(nn.Linear(hidden, self.bottleneck), nn.BatchNorm1d(self.bottleneck), nn.ReLU()),
            nn.Linear(self.bottleneck, hidden),
        )
        module["words"] = MaskedWords(vlm.text.width, vlm.text.words.num_embeddings)
        module["bank"] = FeatureQueue(self.bank, vlm.dim)
        return module

    def encoders(self, module: Learnt) -> Encoders:
        vlm = module["vlm"]
        image, text = vlm.image, vlm.text

        def masked_text(batch: Batch) -> Tensor:
            """The text tower reads the text once, with words hidden: its vector, and what it says of them."""
            noise = batch.noise("mask", 3, text.context_length)
            tokens, targets = module["words"].hide(text, text.tokenize(batch.texts), noise, self.mask)
            tokens = text.transform(tokens)
            words = module["words"].losses(text.norm(tokens.x), targets)  # [B, 2]
            return torch.cat([unit(text.project(text.pool(tokens))), words], 1)  # [B, D + 2]

        def other_text(batch: Batch) -> Tensor:
            noise = batch.noise("eda", EDA_NUMBERS).tolist()
            return vlm.encode_text([eda(t, n) for t, n in zip(batch.texts or (), noise)])  # [B, D]

        return {
            "view_1": lambda batch: image.encode(batch.images).float(),  # [B, D], not normalised
            "view_2": lambda batch: image.encode(batch.views[0]).float(),
            "text_and_words": masked_text,
            "other_text": other_text,
        }

    def compare(self, module: Learnt, z: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        scale = module["vlm"].scale
        views = [unit(z["view_1"]), unit(z["view_2"])]
        texts = [z["text_and_words"][:, :-2], z["other_text"]]
        pairs = [image_text_contrastive(v, t, scale) for v in views for t in texts]
        return {
            "image_text": self.weight_image_text * torch.stack(pairs).mean(),
            "neighbour": self.weight_neighbour * self._neighbours(module, views, texts),
            "image_image": self.weight_image_image * self._simsiam(module, z["view_1"], z["view_2"]),
            "words": self.weight_words * _token_mean(z["text_and_words"][:, -2:]),
        }

    def _neighbours(self, module: Learnt, views: list[Tensor], texts: list[Tensor]) -> Tensor:
        bank, scale = module["bank"], module["vlm"].scale
        terms = [views[0].sum() * 0]
        if bank.warm:  # read before this batch is pushed
            near = [bank.nearest(t) for t in texts]
            terms = [image_text_contrastive(v, n, scale, directions="i2t") for v in views for n in near]
        if module.training:
            for t in reversed(texts):
                bank.push(gather(t.detach()))
        return torch.stack(terms).mean()

    def _simsiam(self, module: Learnt, view_1: Tensor, view_2: Tensor) -> Tensor:
        z_1, z_2 = module["projector"](view_1).float(), module["projector"](view_2).float()
        p_1, p_2 = module["predictor"](z_1).float(), module["predictor"](z_2).float()
        return -(F.cosine_similarity(p_1, z_2.detach()) + F.cosine_similarity(p_2, z_1.detach())).mean() / 2


def _token_mean(words: Tensor) -> Tensor:
    """[b, 2] sums and counts of hidden words -> their mean over the joint batch; 0 when none was hidden."""
    return words[:, 0].sum() * world_size() / gather(words[:, 1].detach()).sum().clamp(min=1)
