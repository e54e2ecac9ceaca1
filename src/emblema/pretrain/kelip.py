"""KELIP: captions in Korean and in English, no translations; the pictures alone tie the two languages together.

One text tower and one vocabulary serve both. The image tower first learns to paint what was hidden of pictures (MAE,
a stage of its own), then image and text are contrasted, with small crops beside the whole picture:

    emblema pretrain kelip --stage mae --out runs/mae
    emblema pretrain kelip --start runs/mae/model --out runs/kelip
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from emblema.core.batch import Batch, Dataset, Record
from emblema.core.card import Card
from emblema.core.errors import BadCheckpoint
from emblema.core.method import Optim
from emblema.data.captioned import Captioned, names_in
from emblema.objectives.contrastive import image_text_contrastive
from emblema.objectives.generative import masked_image_pixels
from emblema.parts.mae import MaskedAutoencoder
from emblema.parts.masking import random_patches
from emblema.pretrain.base import Encoders, Learnt, Pretrain


@dataclass(kw_only=True)
class KELIP(Pretrain):
    card = Card(
        name="kelip",
        title="Large-scale Bilingual Language-Image Contrastive Learning",
        paper="2203.14463",
        year=2022,
        section="5.1 contrastive",
        equation="stage 1: L_MAE (Eq. 6); stage 2: mean over the picture and its crops of C(v_k, t)  (Eqs. 2-3)",
        needs=("texts",),
        objectives=("contrastive", "generative"),
        claim="two languages on disjoint halves: retrieval from one to the other through pictures is above chance",
        oracle="open_clip.loss.ClipLoss; transformers.ViTMAEForPreTraining for stage 1",
        deviations=(
            "two crops of half the side, each with the weight of the whole picture: the report gives neither number",
            "learnt positions in the image tower of stage 1, so that its weights fit stage 2 (fixed in MAE)",
            "on data with emoji concepts each picture's captions are the concept's names in one of the languages",
        ),
    )
    stage: Literal["contrastive", "mae"] = "contrastive"
    start: str = ""  # a model folder whose image tower is begun with (that of stage "mae")
    languages: tuple[str, ...] = ("en", "ko")  # for data that says its concepts; a picture gets one of them
    crops: int = 2
    mask: float = 0.75  # share of patches hidden, stage "mae"
    optim: Optim = field(default_factory=lambda: Optim(lr=1e-3, weight_decay=0.2, betas=(0.9, 0.98), eps=1e-6))

    def prepare(self, data: Dataset) -> Dataset:
        if "concept" not in getattr(data, "columns", ()):
            return data
        names = [names_in(language) for language in self.languages]
        concepts = data.column("concept")  # type: ignore[attr-defined]

        def change(record: Record, at: int) -> Record:
            """The concept's names in the language that this picture's key falls to: no picture has two."""
            words = names[zlib.crc32(record.key.encode()) % len(names)].get(concepts[at])
            return replace(record, text=words[0], texts=words[1:]) if words else record

        return Captioned(data, change)

    def build(self) -> Learnt:
        module = super().build()
        vlm = module["vlm"]
        if self.start:
            _begin_with(vlm.image, self.start)
        if self.stage == "mae":
            vlm.requires_grad_(False)
            vlm.image.requires_grad_(True)
            module["decoder"] = MaskedAutoencoder(vlm.image)
            vlm.image.projection.requires_grad_(False)  # has no part in painting
        return module

    def encoders(self, module: Learnt) -> Encoders:
        vlm = module["vlm"]
        if self.stage == "mae":
            side = module["decoder"].grid[0]

            def painted(batch: Batch) -> Tensor:
                return module["decoder"](vlm.image, batch.images, batch.noise("mae", side * side), self.mask)[0]

            return {"painted": painted}  # [B, P, p*p*3]
        small = _crop_side(vlm.image)
        crops = {
            f"crop_{k}": lambda batch, k=k: vlm.encode_image(crop(batch.images, small, batch.noise(f"crop {k}", 2)))
            for k in range(self.crops)
        }
        return {
            "image": lambda batch: vlm.encode_image(batch.images),  # [B, D]
            "text": lambda batch: vlm.encode_text(batch.texts),  # [B, D]
            **crops,
        }

    def compare(self, module: Learnt, z: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        if self.stage == "mae":
            decoder, image = module["decoder"], module["vlm"].image
            noise = batch.noise("mae", decoder.grid[0] * decoder.grid[1])
            hidden = random_patches(noise, self.mask)[1].to(z["painted"].device)
            pixels = image.normalise(batch.images)
            return {"mae": masked_image_pixels(z["painted"].float(), pixels, hidden, decoder.patch)}
        scale, text = module["vlm"].scale, z["text"]
        views = [v for name, v in z.items() if name != "text"]
        return {"image_text": torch.stack([image_text_contrastive(v, text, scale) for v in views]).mean()}


def crop(images: Tensor, side: int, noise: Tensor) -> Tensor:
    """A square of `side` pixels of each picture, its place by uniform noise [B, 2]: [B, 3, side, side]."""
    H, W = images.shape[2:]
    top, left = (noise * torch.tensor([H - side + 1, W - side + 1])).long().to(images.device).unbind(1)
    steps = torch.arange(side, device=images.device)
    rows = images.gather(2, (top[:, None] + steps)[:, None, :, None].expand(-1, 3, -1, W))  # [B, 3, side, W]
    return rows.gather(3, (left[:, None] + steps)[:, None, None, :].expand(-1, 3, side, -1))


def _crop_side(image: Any) -> int:
    """Half the picture, in whole patches."""
    patch = getattr(getattr(image, "config", None), "patch_size", 1)
    return max(image.image_size // 2 // patch, 1) * patch


def _begin_with(image: torch.nn.Module, folder: str) -> None:
    from emblema.frameworks.checkpoint import load

    try:
        image.load_state_dict(load(folder).vlm.image.state_dict())
    except RuntimeError as error:
        raise BadCheckpoint(f"start={folder!r} has another image tower than this arch: {error}") from error
