"""GroupViT: learned tokens group the patches of a picture, with captions as the only teacher; masks come for free.

The towers are compared as in CLIP, and each image also with prompts made of words of its caption. What a group was
given is a segment, and a segment compared with class names is a mask.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from emblema.core.batch import Batch
from emblema.core.card import Card
from emblema.core.errors import NoSuchDoor
from emblema.core.gather import gather, rank
from emblema.core.method import Optim
from emblema.encoders.groupvit import GroupViTConfig
from emblema.encoders.vit import ViTConfig
from emblema.objectives.contrastive import image_text_contrastive
from emblema.objectives.logit_scale import LogitScale
from emblema.pretrain.base import Encoders, Learnt, Pretrain

PROMPTS = ("a photo of a {}.", "a picture of a {}.", "an image of the {}.", "a drawing of a {}.", "there is a {}.")
OTHER_WORDS = (
    "a an the this that these those one two three four five some any no of on in at to from by with without and or but "
    "for as is are was be been has have had do does it its he she his her their they we you i my your our under over "
    "above below underneath left right top bottom behind beside near between next front up down out off into onto not "
    "red green blue yellow orange purple pink brown black white grey gray big small large little old new "
    "photo picture image drawing icon illustration emoji number there while very"
)
NO_NOUNS = frozenset(OTHER_WORDS.split())


@dataclass(kw_only=True)
class GroupViT(Pretrain):
    card = Card(
        name="groupvit",
        title="GroupViT: Semantic Segmentation Emerges from Text Supervision",
        paper="2202.11094",
        year=2022,
        section="5.1 contrastive",
        equation="L = C(z_I, z_T) + 1.0 * 1/2 [CE over 3B prompts, 1/3 each + mean_k CE(p_k -> image)]  (Eqs. 2-3)",
        needs=("texts",),
        objectives=("contrastive",),
        claim="scenes of 2-3 things: mean IoU of GroupViT's groups > CLIP's patch similarity, same pairs and steps",
        oracle="transformers.GroupViTModel with return_loss and its image tower, weight by weight",
        deviations=(
            "nouns are the words of a caption that no list of other words names: no tagger ships",
            "16 and 8 groups (64 and 8 in the paper): pictures here have 16 to 64 patches, not 196",
            "the text projector is linear, that of the architecture; official: two layers with batch normalisation",
            "the projector's hidden width is a field (4096 in the paper): smaller towers are trained",
            "no background threshold in `dense`: segmenters set it, as for every model",
        ),
    )
    groups: tuple[int, int] = (16, 8)
    hidden: int = 512  # of the image projector
    nouns: int = 3  # prompts a caption
    weight_prompts: float = 1.0
    optim: Optim = field(
        default_factory=lambda: Optim(lr=1.6e-3, weight_decay=0.05, betas=(0.9, 0.999), clip_norm=5.0, eps=1e-8)
    )

    def config(self) -> Any:
        shape = super().config()
        if not isinstance(shape.image, ViTConfig):
            raise NoSuchDoor(f"groupvit groups the patches of a ViT: {self.arch} has another image tower")
        depth = max(shape.image.depth, 3)
        first, second = depth // 2, max(depth // 4, 1)
        own = {f.name: getattr(shape.image, f.name) for f in fields(ViTConfig)}
        own |= {"kind": "groupvit", "norm_before": False, "class_token": False, "pool": "mean", "depth": depth}
        depths = (first, second, depth - first - second)
        image = GroupViTConfig(**own, depths=depths, groups=tuple(self.groups), hidden=self.hidden)
        return replace(shape, image=image, scale="groupvit")

    def build(self) -> Learnt:
        module = super().build()
        if self.nouns:
            module["prompt_scale"] = LogitScale.preset("groupvit")
        return module

    def encoders(self, module: Learnt) -> Encoders:
        vlm = module["vlm"]

        def prompts(batch: Batch, k: int) -> Tensor:
            noise = batch.noise(f"noun {k}", 2).tolist()
            return vlm.encode_text([prompt(t, k, n) for t, n in zip(batch.texts or (), noise)])

        return {
            "image": lambda batch: vlm.encode_image(batch.images),  # [B, D]
            "text": lambda batch: vlm.encode_text(batch.texts),  # [B, D]
            **{f"prompt_{k}": lambda batch, k=k: prompts(batch, k) for k in range(self.nouns)},
        }

    def compare(self, module: Learnt, z: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        terms = {"image_text": image_text_contrastive(z["image"], z["text"], module["vlm"].scale)}
        if self.nouns:
            said = [z[f"prompt_{k}"] for k in range(self.nouns)]
            terms["prompts"] = self.weight_prompts * multi_label(z["image"], said, module["prompt_scale"]())
        return terms


def multi_label(z_image: Tensor, prompts: list[Tensor], scale: Tensor) -> Tensor:
    """Each image among all prompts, 1/K for each of its own, and each prompt among all images: mean of the two ways.

    z_image [b, D] and K times [b, D], unit.
    """
    columns = [gather(p) for p in prompts]  # K x [B, D]
    logits = scale * z_image.float() @ torch.cat(columns).float().T  # [b, K B]
    own = torch.arange(len(z_image), device=logits.device) + rank() * len(z_image)
    to_prompts = torch.stack([F.cross_entropy(logits, own + k * len(c)) for k, c in enumerate(columns)]).mean()
    to_image = torch.stack([image_text_contrastive(z_image, p, scale, directions="t2i") for p in prompts]).mean()
    return (to_prompts + to_image) / 2


def prompt(caption: str, k: int, noise: list[float]) -> str:
    """A noun of the caption in a prompt; the caption itself where it has no noun. `noise`: two uniform numbers."""
    words = [w.strip(".,;:!?\"'()").lower() for w in caption.split()]
    nouns = list(dict.fromkeys(w for w in words if len(w) > 2 and w.isalpha() and w not in NO_NOUNS))
    noun = nouns[(int(noise[0] * len(nouns)) + k) % len(nouns)] if nouns else caption
    return PROMPTS[int(noise[1] * len(PROMPTS))].format(noun) if nouns else caption
