"""One small convolutional network and one loop, for all paradigms that train a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.errors import BadData
from emblema.core.preprocess import Preprocess
from emblema.data.datasets import Records
from emblema.data.pictures import load_batch
from emblema.engine import seed as seeds
from emblema.engine.precision import autocast
from emblema.parts.views import Views

SIZE = 32  # pixels
WIDTH = 256  # of the features
MILD = Views(scale=(0.6, 1.0), turn=10, flip=0.0, jitter=0.2, background=False)  # digits and letters do not flip


@dataclass(frozen=True)
class Budget:
    """What every paradigm that trains a network is given."""

    pretrain: int = 600  # steps before the task is known
    finetune: int = 100  # steps on the labelled pictures
    batch: int = 64


class Network(nn.Module):
    """uint8 [B, 3, 32, 32] -> [B, 256]: four convolutions with batch normalisation, then the mean over the map."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for before, after, stride in ((3, 32, 2), (32, 64, 2), (64, 128, 1), (128, WIDTH, 2)):
            parts += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*parts)

    def forward(self, pixels: Tensor) -> Tensor:
        x = (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        return self.body(x).mean((2, 3))


def pixels_of(records: Records, size: int = SIZE) -> Tensor:
    """uint8 [N, 3, size, size]"""
    pixels, broken = load_batch(records.column("image"), Preprocess(size=size, mode="pad"), threads=2)
    if broken:
        raise BadData(f"{len(broken)} pictures of {records.card.name} cannot be read, e.g. {broken[0][1]}")
    return pixels


def train(module: nn.Module, loss: Callable[[Tensor, torch.Generator], Tensor], count: int, steps: int, batch: int,
          seed: int, lr: float = 2e-3) -> None:  # fmt: skip
    """AdamW with a linear warm-up and a cosine. `loss(rows, generator)` of rows drawn epoch by epoch."""
    optimiser = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.05)
    ramp = lambda s: min((s + 1) / (0.1 * steps), 0.5 * (1 + torch.cos(torch.tensor(s / steps * torch.pi)).item()))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, ramp)
    module.train()
    order = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        generator = seeds.generator(seed, "step", step)
        if len(order) < min(batch, count):
            order = torch.randperm(count, generator=generator)
        rows, order = order[:batch], order[batch:]
        optimiser.zero_grad()
        with autocast("auto", torch.device("cpu")):
            value = loss(rows, generator)
        value.backward()
        optimiser.step()
        schedule.step()
    module.eval()


def finetune(start: Network, pixels: Tensor, labels: Tensor, classes: int, test: Tensor, seed: int, budget: Budget,
             lr: float) -> Tensor:  # fmt: skip
    """Learn all weights and a new linear layer from labelled pictures; the class of each test picture [N]."""
    with seeds.forked(seed, "head"):
        module = nn.Sequential(Network(), nn.Linear(WIDTH, classes))
    module[0].load_state_dict(start.state_dict())

    def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
        return F.cross_entropy(module(MILD(pixels[rows], SIZE, generator)), labels[rows])

    train(module, loss, len(labels), budget.finetune, budget.batch, seed, lr)
    with torch.inference_mode():
        return torch.cat([module(part).argmax(1) for part in test.split(512)])
