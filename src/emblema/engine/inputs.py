"""A split as deep as a method may read it, in memory: what transfer systems are fitted on and asked about.

Everything before a method's level is frozen, so it is computed once for the evaluation view of each picture, or for V
random crops that are drawn once, and cached on disk. Training then costs what the method itself costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from emblema.core.batch import Batch, Dataset, ImageInput, Level, Record
from emblema.core.errors import BadData
from emblema.core.method import Optim
from emblema.core.tokens import Tokens
from emblema.data.datasets import columns
from emblema.data.pictures import canvas, load_batch
from emblema.engine import seed
from emblema.engine.encode import Encoder
from emblema.engine.features import Features, Pictures, identity
from emblema.parts.views import Views

STAGES = {  # level -> what an ImageInput then holds
    Level.PIXELS: ("pixels",),
    Level.EMBEDDED: ("tokens", "pooled"),
    Level.PATCHES: ("patches", "pooled"),
    Level.POOLED: ("pooled",),
}
COMPUTED = {"tokens": "embedded", "patches": "patches", "values": "values", "pooled": "joint"}  # -> the encoder's stage
CROPS = Views(scale=(0.08, 1.0), jitter=0.0, background=False)  # RandomResizedCrop and a flip, as CoOp trains


@dataclass
class Inputs:
    """N pictures in V views. Every array is [V, N, ...]; labels are [N], -1 where a record has none."""

    encoder: Encoder
    level: Level
    reader: str
    arrays: dict[str, Tensor]
    labels: Tensor
    keys: list[str]
    class_names: list[str]
    targets: dict[str, Tensor]  # "labels" [N, C]: multi-label sets, -1 where unknown
    live: tuple[str, ...] = ()  # stages that are computed at every batch, from pixels: to check the cache against

    @classmethod
    def read(
        cls,
        encoder: Encoder,
        data: Dataset,
        level: Level,
        *,
        needs: Sequence[str] = (),
        views: int = 0,
        crops: Views = CROPS,
        random_seed: int = 0,
        cache: Features | None = None,
        live: bool = False,
        reader: str = "the method",
    ) -> Inputs:
        """Read `data` at `level`, and the further stages in `needs` ("values", "patches", "tokens", "pixels").

        `views` random crops a picture are drawn once; 0 stores the evaluation view. Raises `BadData` when pictures
        cannot be read, naming them.
        """
        names = list(dict.fromkeys([*STAGES[level], *(n for n in needs if n == "pixels" or n in COMPUTED)]))
        shown = Drawn(data, views, crops, random_seed, encoder.preprocess) if views else data
        pixels = ("pixels",) if live or "pixels" in names else ()
        arrays = dict(_pixels(encoder, shown)) if pixels else {}
        for name in () if live else names:
            if name in COMPUTED:
                stage = COMPUTED[name]
                arrays |= cache.read(encoder, shown, stage).arrays if cache else Features.compute(encoder, shown, stage)
        arrays = {name: rows.unflatten(0, (max(views, 1), len(data))) for name, rows in arrays.items()}
        labels, targets = _labels(data)
        keys = [str(k) for k in getattr(data, "keys", None) or [data[i].key for i in range(len(data))]]
        computed = tuple(n for n in names if n in COMPUTED) if live else ()
        return cls(encoder, level, reader, arrays, labels, keys, list(data.class_names), targets, computed)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def views(self) -> int:
        return len(next(iter(self.arrays.values())))

    def batch(self, rows: Tensor, view: Tensor | int = 0, progress: float = 0.0) -> Batch:
        """The pictures `rows` [B], each in its `view` [B]."""
        arrays = {name: stored[view, rows] for name, stored in self.arrays.items()}
        for name in self.live:
            arrays |= self.encoder.encode(arrays["pixels"], COMPUTED[name])
        if self.live and "pixels" not in STAGES[self.level]:
            del arrays["pixels"]
        if "tokens" in arrays:
            arrays["tokens"] = _as_tokens(self.encoder, arrays["tokens"], arrays.pop("beside", None))  # type: ignore[assignment]
        x = ImageInput(reads=self.level, reader=self.reader, **arrays)  # type: ignore[arg-type]
        targets = {name: values[rows] for name, values in self.targets.items()} | {"index": rows}
        keys = [self.keys[i] for i in rows.tolist()]
        return Batch(keys=keys, labels=self.labels[rows], x=x, targets=targets, progress=progress)

    def in_order(self, size: int = 256) -> Iterator[Batch]:
        """All pictures once, in the first view."""
        for rows in torch.arange(len(self)).split(size):
            yield self.batch(rows)

    def epoch_steps(self, batch_size: int) -> int:
        """Steps of an epoch: the incomplete last batch is dropped, unless it is the only one."""
        return max(len(self) // batch_size, 1)

    def total_steps(self, optim: Optim) -> int:
        return optim.total(self.epoch_steps(optim.batch_size))

    def batches(self, optim: Optim, random_seed: int) -> Iterator[Batch]:
        """Shuffled batches, epoch after epoch; a batch is a function of (seed, step)."""
        per_epoch = self.epoch_steps(optim.batch_size)
        for step in range(self.total_steps(optim)):
            epoch, place = divmod(step, per_epoch)
            order = torch.randperm(len(self), generator=seed.generator(random_seed, "order", epoch))
            rows = order[place * optim.batch_size : (place + 1) * optim.batch_size]
            generator = seed.generator(random_seed, "batch", step)
            batch = self.batch(rows, torch.randint(self.views, (len(rows),), generator=generator))
            batch.generator = generator
            yield batch

    def subset(self, rows: Tensor) -> Inputs:
        """Some of the pictures, under their labels."""
        return replace(
            self,
            arrays={name: stored[:, rows] for name, stored in self.arrays.items()},
            labels=self.labels[rows],
            keys=[self.keys[i] for i in rows.tolist()],
            targets={name: values[rows] for name, values in self.targets.items()},
        )

    def with_labels(self, labels: Tensor) -> Inputs:
        """The same pictures under other labels (pseudo-labels)."""
        return replace(self, labels=labels)


class Drawn:
    """V random crops of each picture, drawn once: a data set of V * N pictures, all first views first."""

    def __init__(self, data: Dataset, views: int, crops: Views, random_seed: int, preprocess: Any):
        self.data, self.views, self.crops, self.seed, self.preprocess = data, views, crops, random_seed, preprocess
        self.card, self.class_names = data.card, data.class_names

    def __len__(self) -> int:
        return self.views * len(self.data)

    def __getitem__(self, index: int) -> Record:
        from PIL import Image

        view, row = divmod(index, len(self.data))
        record = self.data[row]
        size = self.preprocess.size
        whole = canvas(record.image, size, self.preprocess.mode)[None]  # [1, 4, S, S]  # type: ignore[arg-type]
        drawn = self.crops(whole, size, seed.generator(self.seed, "view", view, record.key))[0]
        return replace(record, image=Image.fromarray(drawn.permute(1, 2, 0).numpy()))

    def identity(self) -> str:
        return f"{identity(self.data)}:{self.views}:{self.seed}:{self.crops}"


def _pixels(encoder: Encoder, data: Dataset) -> Iterator[tuple[str, Tensor]]:
    pictures = Pictures(data)
    pixels, errors = load_batch([pictures[i] for i in range(len(data))], encoder.preprocess, encoder.threads)
    if errors:
        shown = "; ".join(f"{data[i].key}: {reason}" for i, reason in errors[:3])
        raise BadData(f"{len(errors)} of {len(data)} pictures of {data.card.name} cannot be read: {shown}")
    yield "pixels", pixels


def _labels(data: Dataset) -> tuple[Tensor, dict[str, Tensor]]:
    """Labels [N], and {"labels": [N, C]} with 1, 0, or -1 for unknown where records have several."""
    (single,) = columns(data, "label")
    one_each = "labels" not in getattr(data, "columns", {}) and any(label is not None for label in single)
    several = [] if one_each else columns(data, "labels")[0]  # scenes are made for it
    labels = torch.tensor([-1 if label is None else label for label in single], dtype=torch.long)
    if not any(several):
        return labels, {}
    multi = torch.zeros(len(several), len(data.class_names))
    for row, present in enumerate(several):
        multi[row, list(present or ())] = 1
    return labels, {"labels": multi}


def _as_tokens(encoder: Encoder, x: Tensor, beside: Tensor | None) -> Tokens:
    """Stored embeddings [B, L, width] with their positions known again."""
    tower = encoder.vlm.image
    blank = torch.zeros(1, 3, encoder.preprocess.size, encoder.preprocess.size, dtype=torch.uint8, device=x.device)
    with torch.no_grad():
        one = tower.embed(blank)
    return replace(one, x=x, pool_at=one.pool_at.expand(len(x)), beside=beside)
