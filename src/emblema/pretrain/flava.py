"""FLAVA: one model for images, for texts and for both, taught by all three kinds of objective at once.

Each leg fills in what was hidden from it alone; a fusion encoder fills in each with the help of the other and tells
whether the two belong together; and the legs, unmasked, are compared as in CLIP.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from dataclasses import replace as changed
from typing import Any

import torch
from torch import Tensor, nn

from emblema.core.batch import Batch, Dataset
from emblema.core.card import Card
from emblema.core.errors import BadData, NoSuchDoor
from emblema.core.gather import gather
from emblema.core.method import Optim
from emblema.core.tokens import Tokens
from emblema.data.pictures import load_batch
from emblema.encoders.block import LayerNorm
from emblema.encoders.text import TextConfig
from emblema.encoders.vit import ViTConfig
from emblema.engine.train import preprocess_of
from emblema.frameworks.two_leg import TwoLegs
from emblema.objectives.alignment import image_text_matching
from emblema.objectives.contrastive import image_text_contrastive
from emblema.objectives.generative import IGNORE
from emblema.parts.codebook import PatchCodes
from emblema.parts.masked_words import MaskedWords, fill_in, token_mean
from emblema.parts.masking import block_patches
from emblema.pretrain.base import Learnt, Pretrain


@dataclass(kw_only=True)
class FLAVA(Pretrain):
    card = Card(
        name="flava",
        title="FLAVA: A Foundational Language And Vision Alignment Model",
        paper="2112.04482",
        year=2022,
        section="5.3 alignment",
        equation="L = L_MIM + L_MLM + L_MMM-image + L_MMM-text + L_ITM + L_contrast  (Eqs. 6, 7, 8, 10, 2-3)",
        framework="two-leg",
        needs=("texts",),
        objectives=("contrastive", "generative", "alignment"),
        claim="same pairs and steps: told apart by its matching head, a caption and a hard wrong one, FLAVA > contrast",
        oracle="transformers.FlavaForPreTraining, heads and losses, on the same hidden states",
        deviations=(
            "visual codes are k-means of patch pixels, 512 of them (8192 of DALL-E's tokenizer, which does not ship)",
            "MIM and MLM read the pictures and the texts of the pairs: there are no further sets here; a batch without "
            "texts has MIM only, one without pictures MLM only",
            "a wrong caption is another one of the batch, exchanged behind the text leg; one that says the same fits",
            "the text vector is read at the end token and not at [CLS]: both read the whole text",
            "a batch without a real pair has zero terms; transformers then takes all pairs for real",
            "trained in one stage from random weights (unimodal stages first in the paper)",
        ),
    )
    codes: int = 512  # visual words
    pictures: int = 512  # of the data, that the visual words are made from
    mask_image: float = 75 / 196  # share of patches hidden, in blocks
    mask_text: float = 0.15  # share of words hidden
    mismatch: float = 0.5  # share of pairs whose caption is exchanged for matching
    fusion_depth: int | None = None  # None: half of the image tower's
    optim: Optim = field(default_factory=lambda: Optim(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.999), eps=1e-8))

    def config(self) -> Any:
        shape = super().config()
        image, text = shape.image, shape.text
        if not isinstance(image, ViTConfig) or not isinstance(text, TextConfig):
            raise NoSuchDoor(f"flava hides patches of a ViT and words of a text transformer: {self.arch} has others")
        return TwoLegs(
            image=image,
            text=changed(text, causal=False),
            dim=shape.dim,
            scale=shape.scale,
            fusion_width=image.width,
            fusion_depth=self.fusion_depth or max(image.depth // 2, 1),
            fusion_heads=image.heads,
        )

    def build(self) -> Learnt:
        module = super().build()
        vlm = module["vlm"]
        side = vlm.image.image_size // vlm.image.config.patch_size
        width, words = vlm.fusion.width, vlm.text.words.num_embeddings
        module["hidden_patch"] = nn.ParameterList([torch.randn(vlm.image.width) * 0.02])
        module["words"] = MaskedWords(vlm.text.width, words)
        module["words"].head = prediction(vlm.text.width, words)
        module["patches"] = prediction(vlm.image.width, self.codes)
        module["fused_words"] = prediction(width, words)
        module["fused_patches"] = prediction(width, self.codes)
        module["matching"] = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))
        module["codes"] = PatchCodes(self.codes, (side, side))
        return module

    def begin(self, module: Learnt, data: Dataset) -> None:
        """Make the visual words from pictures spread over the data."""
        count = min(self.pictures, len(data))
        chosen: list[Any] = [data[i * len(data) // count].image for i in range(count)]
        if any(source is None for source in chosen):
            raise BadData(f"{data.card.name} has records without a picture: visual words cannot be made from it")
        images, broken = load_batch(chosen, preprocess_of(module["vlm"]), threads=1)
        bad = {i for i, _ in broken}
        whole = images[[i for i in range(len(images)) if i not in bad]]
        if not len(whole):
            raise BadData(f"none of the {len(images)} pictures tried can be read; the first: {broken[0][1]}")
        module["codes"].fit(whole, torch.Generator().manual_seed(0))

    def losses(self, module: Learnt, batch: Batch) -> dict[str, Tensor]:
        terms, vlm = {}, module["vlm"]
        if batch.images is not None:
            image, codes = self._hidden_image(module, batch)
            terms["mim"] = token_mean(fill_in(module["patches"], vlm.image.norm(image.patches()), codes))
        if batch.texts is not None:
            text, words = self._hidden_text(module, batch)
            terms["mlm"] = token_mean(module["words"].losses(vlm.text.norm(text.x), words))
        if batch.images is None or batch.texts is None:
            return terms

        other, matched = self.partners(batch)
        other, matched = other.to(image.x.device), matched.to(image.x.device)
        shown = changed(
            text,
            x=text.x[other],
            pool_at=text.pool_at[other],
            length=None if text.length is None else text.length[other],
        )
        joint = vlm.fuse(
            image.with_x(vlm.image.norm(image.x)), shown.with_x(vlm.text.norm(shown.x))
        )  # [B, 1 + L_i + L_t, width]
        kept = ~matched[:, None]  # only what really belongs together can help
        first = image.first_patch or 0
        fused_patches = joint.image_part[:, first : first + codes.shape[1]]
        terms["mmm_image"] = token_mean(
            fill_in(module["fused_patches"], fused_patches, codes.masked_fill(kept, IGNORE))
        )
        terms["mmm_text"] = token_mean(
            fill_in(module["fused_words"], joint.text_part, words[other].masked_fill(kept, IGNORE))
        )
        terms["matching"] = image_text_matching(module["matching"](joint.pooled), matched)
        real = gather(matched.float())
        weight = matched * len(real) / real.sum().clamp(min=1)  # mean over the matched rows
        z_image, z_text = vlm.encode_image(batch.images), vlm.encode_text(batch.texts)
        terms["image_text"] = image_text_contrastive(z_image, z_text, vlm.scale, sample_weight=weight)
        return terms

    def partners(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Which text each image is shown with [B], and whether it says what the image's own does [B]."""
        assert batch.texts is not None
        B = len(batch)
        draw, which = batch.noise("partner", 2).unbind(1)
        step = 1 + (which * (B - 1)).long().clamp(max=max(B - 2, 0))  # 1 .. B - 1
        own = torch.arange(B)
        other = torch.where((draw < self.mismatch) & (B > 1), (own + step) % B, own)
        matched = torch.tensor([batch.texts[i] == batch.texts[j] for i, j in enumerate(other.tolist())])
        return torch.where(matched, own, other), matched

    def _hidden_image(self, module: Learnt, batch: Batch) -> tuple[Tokens, Tensor]:
        """Transformed tokens of images with blocks hidden, and the codes of what was hidden [B, P]."""
        image = module["vlm"].image
        tokens = image.embed(batch.images)
        assert tokens.grid is not None
        H, W = tokens.grid
        count, smallest = round(self.mask_image * H * W), max(round(H * W * 16 / 196), 1)
        seeds = (batch.noise("blocks", 1)[:, 0].double() * 2**24).long().tolist()
        draws = [torch.Generator().manual_seed(s) for s in seeds]
        hidden = torch.stack([block_patches((H, W), count, g, smallest=smallest) for g in draws])
        hidden = hidden.flatten(1).to(tokens.x.device)  # [B, P]
        there = image.positions_at(H, W) + module["hidden_patch"][0]  # hidden, but it is known where
        codes = module["codes"](batch.images).masked_fill(~hidden, IGNORE)
        return image.transform(tokens.where(hidden, there)), codes

    def _hidden_text(self, module: Learnt, batch: Batch) -> tuple[Tokens, Tensor]:
        text = module["vlm"].text
        noise = batch.noise("mask", 3, text.context_length)
        tokens, words = module["words"].hide(text, text.tokenize(batch.texts), noise, self.mask_text)
        return text.transform(tokens), words


def prediction(width: int, size: int) -> nn.Sequential:
    """BERT's head: hidden states -> logits over a vocabulary."""
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), LayerNorm(width, eps=1e-12), nn.Linear(width, size))
