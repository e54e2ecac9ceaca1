"""Cross-modal adaptation: a linear classifier for which class texts are training samples like the pictures."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.batch import ImageInput, Level
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.parts.prompts import Borrowed, clean
from emblema.transfer.base import Transfer


@dataclass(kw_only=True)
class CrossModal(Transfer):
    card = Card(
        name="cross_modal",
        title="Multimodality Helps Unimodality: Cross-Modal Few-Shot Learning with Multimodal Models",
        paper="2301.06267",
        year=2023,
        section="6.3.3 other",
        equation="L = CE(s w . z_i, y_i) + CE(s w . t_j, y_j)",
        reads=Level.POOLED,
        closed=True,
        claim="with 1 shot a class, text samples make the linear classifier more accurate",
        oracle="no text samples: the same classifier trained on pictures alone",
        deviations=("one setting of rate and weight decay; officially a grid is searched on validation pictures",),
    )
    texts: bool = True  # False: pictures only
    optim: Optim = field(
        default_factory=lambda: Optim(
            lr=1e-3,
            weight_decay=0.01,
            betas=(0.9, 0.999),
            eps=1e-8,
            warmup=50,
            steps=800,
            batch_size=32,
            clip_norm=None,
        )
    )

    def build(self, vlm, class_names):
        texts = [[t.replace("{}", clean(name)) for t in self.wording] for name in class_names]
        with torch.no_grad():
            z_text = torch.stack([vlm.encode_text(each) for each in texts])  # [C, T, D]
        return Linear(vlm, self.hand(vlm, class_names), z_text)

    def losses(self, module, batch):
        terms = super().losses(module, batch)
        if self.texts:
            classes, templates = module.z_text.shape[:2]
            rows = torch.randint(classes * templates, (len(batch),), generator=batch.generator)  # as many as pictures
            logits = module.of(module.z_text.flatten(0, 1)[rows])
            terms["texts"] = F.cross_entropy(logits, rows // templates)
        return terms


class Linear(Borrowed):
    """Rows that begin at the hand-written prompts."""

    z_text: Tensor  # [C, T, D]

    def __init__(self, vlm, hand: Tensor, z_text: Tensor):
        super().__init__(vlm)
        self.weight = nn.Parameter(hand.clone())  # [C, D]
        self.register_buffer("z_text", z_text, persistent=False)

    def of(self, z: Tensor) -> Tensor:
        return self.vlm.scale * z @ self.weight.T

    def forward(self, x: ImageInput) -> Tensor:
        return self.of(x.pooled)
