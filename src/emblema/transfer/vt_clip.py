"""VT-CLIP: class texts read the places of a picture by cross-attention, and so become those of this picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emblema.core.batch import ImageInput, Level
from emblema.core.card import Card
from emblema.frameworks.vlm import unit
from emblema.parts.prompts import Borrowed
from emblema.transfer.base import Transfer


@dataclass(kw_only=True)
class VTCLIP(Transfer):
    card = Card(
        name="vt_clip",
        title="VT-CLIP: Enhancing Vision-Language Models with Visual-guided Texts",
        paper="2112.02399",
        year=2021,
        section="6.3.3 other",
        equation="L = CE(s z . n(t'_c), y),  t' = t + Attn(t, V, V) + FFN",
        reads=Level.PATCHES,
        claim="with 16 shots a class, VT-CLIP's accuracy beats zero-shot",
        oracle="output projections of zero: zero-shot; one place: the same shift for all classes of a picture",
        deviations=(
            "no code is public: a pre-norm block is assumed, its output projections begin at zero",
            "trained as CoOp; the paper's own schedule is not known",
        ),
    )
    heads: int = 8
    hidden: int = 4  # of the FFN, times the width

    def build(self, vlm, class_names):
        return GuidedTexts(vlm, self.hand(vlm, class_names), self.heads, self.hidden)


class GuidedTexts(Borrowed):
    hand: Tensor  # [C, D]

    def __init__(self, vlm, hand: Tensor, heads: int, hidden: int):
        super().__init__(vlm)
        dim = hand.shape[1]
        self.register_buffer("hand", hand, persistent=False)
        self.norm_text, self.norm_place, self.norm = (nn.LayerNorm(dim) for _ in range(3))
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden * dim), nn.GELU(), nn.Linear(hidden * dim, dim))
        for last in (self.attention.out_proj, self.mlp[2]):
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, x: ImageInput) -> Tensor:
        return self.vlm.scale * torch.einsum("bd,bcd->bc", x.pooled, self.texts(x))

    def texts(self, x: ImageInput) -> Tensor:
        """The class texts of each picture: [B, C, D] unit."""
        places = self.norm_place(x.patches.flatten(1, 2))  # [B, S, D]
        query = self.norm_text(self.hand).expand(len(places), -1, -1)  # [B, C, D]
        t = self.hand + self.attention(query, places, places, need_weights=False)[0]
        return unit(t + self.mlp(self.norm(t)))
