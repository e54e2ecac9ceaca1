"""SVL-Adapter: a second encoder learns from the task's pictures without their labels, and votes beside the model.

A small network is trained by SimCLR on the pictures themselves; an MLP on its frozen features names the classes, and
its logits are mixed with the zero-shot ones. Where a model knows little of a kind of picture, the mixture leans away
from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.batch import ImageInput, Level
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.data.catalog import load
from emblema.data.pictures import load_batch
from emblema.encoders.vit import ConvStem
from emblema.engine import seed
from emblema.engine.inputs import Inputs
from emblema.objectives.contrastive import nt_xent
from emblema.parts.prompts import Borrowed
from emblema.parts.views import Views
from emblema.transfer.base import Transfer

STRONG = Views(scale=(0.3, 1.0), turn=10, jitter=0.4, hue=0.1, grey=0.2, blur=0.2, background=False)
GRID = [round(0.05 * i, 2) for i in range(21)]  # of alpha


@dataclass(kw_only=True)
class SVLAdapter(Transfer):
    card = Card(
        name="svl_adapter",
        title="SVL-Adapter: Self-Supervised Adapter for Vision-Language Pretrained Models",
        paper="2210.03794",
        year=2022,
        section="6.3.2 feature adapter",
        equation="p = alpha MLP(h) + (1 - alpha) s z . t_c,  h of a self-supervised encoder",
        reads=Level.POOLED,
        needs=("labels", "pixels"),
        closed=True,
        claim="with 16 shots a class, SVL-Adapter's accuracy beats zero-shot on pictures far from the model's",
        oracle="alpha 0: zero-shot; alpha 1: the MLP alone; the grid against brute force",
        deviations=(
            "the self-supervised encoder is a small convolutional network from scratch; officially a ResNet-50 that "
            "starts from supervised ImageNet weights",
            "it sees the labelled pictures, unless `unlabelled` names a set; officially all training pictures of the "
            "task",
            "labels are given; the variant on the model's own pseudo-labels is left out",
        ),
    )
    alpha: float | None = None  # None: chosen on validation pictures; without any, 0.2
    confident: bool = False  # SVL-Adapter*: alpha = 1 - mean confidence of zero-shot on the pictures asked about
    unlabelled: str = ""  # a data set (name or path) whose training pictures the second encoder also learns from
    size: int = 64  # pixels that the second encoder sees
    width: int = 256  # of its features, and of the MLP
    pretrain: int = 200  # SimCLR steps
    temperature: float = 0.5  # of SimCLR
    optim: Optim = field(
        default_factory=lambda: Optim(lr=1e-3, weight_decay=0.0, schedule="constant", warmup=0, clip_norm=None,
                                      epochs=50.0, batch_size=32)
    )  # fmt: skip

    def build(self, vlm, class_names):
        return SecondOpinion(vlm, self.hand(vlm, class_names), self.size, self.width, self.alpha)

    def learn(self, module, train: Inputs | None, on_step=None):
        assert train is not None
        pixels = train.arrays["pixels"][0]  # [N, 3, S, S]
        if self.unlabelled:
            more = load(self.unlabelled, "train").column("image")
            pixels = torch.cat([pixels, load_batch(more, train.encoder.preprocess, threads=2)[0]])
        self.look(module, pixels)
        super().learn(module, train, on_step)

    def look(self, module: Any, pixels: Tensor) -> None:
        """SimCLR: two views of a picture against those of all others in the batch (Chen et al., 2002.05709)."""
        with seed.forked(self.seed, "projector"):
            project = nn.Sequential(nn.Linear(self.width, self.width), nn.ReLU(), nn.Linear(self.width, 128))
        learner = nn.Sequential(module.eyes.requires_grad_(True), project).train()
        optimiser = torch.optim.AdamW(learner.parameters(), lr=1e-3, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(self.pretrain, 1))
        for step in range(self.pretrain):
            dice = seed.generator(self.seed, "look", step)
            rows = torch.randperm(len(pixels), generator=dice)[:128]
            views = [STRONG(pixels[rows], self.size, dice) for _ in range(2)]
            one, other = F.normalize(learner(torch.cat(views)), dim=-1).chunk(2)  # [B, 128]
            optimiser.zero_grad()
            nt_xent(one, other, self.temperature).backward()
            optimiser.step()
            schedule.step()
        module.eyes.requires_grad_(False)

    def losses(self, module, batch):
        return {"cross_entropy": F.cross_entropy(module.name(batch.x), batch.labels)}

    @torch.no_grad()
    def select(self, module, val: Inputs):
        if self.alpha is not None or self.confident:
            return
        batch = next(val.in_order(len(val)))
        named, text = module.name(batch.x), module.zero_shot(batch.x)
        right = [((a * named + (1 - a) * text).argmax(-1) == val.labels).sum() for a in GRID]
        module.alpha.fill_(GRID[int(torch.stack(right).argmax())])  # the first of equals

    @torch.no_grad()
    def predict(self, data):
        module: Any = self.module_
        inputs = data if isinstance(data, Inputs) else self.read(data)
        if self.confident:
            sure = [module.zero_shot(batch.x).softmax(-1).amax(-1) for batch in inputs.in_order(self.predict_size)]
            module.alpha.fill_(1 - torch.cat(sure).mean())
        return super().predict(inputs)

    scores = predict


class SecondOpinion(Borrowed):
    """The second encoder, the MLP on its features, and the mixture."""

    hand: Tensor  # [C, D]
    alpha: Tensor

    def __init__(self, vlm, hand: Tensor, size: int, width: int, alpha: float | None):
        super().__init__(vlm)
        self.register_buffer("hand", hand)
        self.register_buffer("alpha", torch.tensor(0.2 if alpha is None else alpha))
        self.size = size
        self.eyes = nn.Sequential(Small(size), ConvStem(16, width), Mean()).requires_grad_(False)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, len(hand)))

    def forward(self, x: ImageInput) -> Tensor:
        return self.alpha * self.name(x) + (1 - self.alpha) * self.zero_shot(x)  # [B, C]

    def name(self, x: ImageInput) -> Tensor:
        """What the second encoder's MLP says: [B, C]"""
        with torch.no_grad():
            h = self.eyes.eval()(x.pixels)  # [B, width]
        return self.mlp(h)

    def zero_shot(self, x: ImageInput) -> Tensor:
        return self.vlm.logits(x.pooled, self.hand)


class Small(nn.Module):
    """uint8 [B, 3, S, S] -> [B, 3, size, size] in -1..1"""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.float() / 127.5 - 1
        if x.shape[-1] != self.size:
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        return x.contiguous(memory_format=torch.channels_last)


class Mean(nn.Module):
    """The mean over the places of a map: [B, C, H, W] -> [B, C]"""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))
