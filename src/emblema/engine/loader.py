"""Batches as a function of the step: the order, the views and the captions of step 17 never depend on what came before.

An epoch is a permutation by (seed, epoch). Its last batch is completed from the start of the same permutation, so all
epochs and all processes take equal steps and none can wait for another at the end. Views are drawn for *pieces* of the
joint batch, each with its own stream; a process makes the pieces that its rows touch, so one process and
several see the same pictures.

Decoding and augmentation release Python's lock, so threads do (no worker processes, nothing is pickled).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from emblema.core.batch import Batch, Dataset, Record
from emblema.core.errors import BadData
from emblema.engine import seed

View = Callable[[Tensor, int, torch.Generator], Tensor]  # uint8 [B, 4, S, S], size, generator -> uint8 [B, 3, s, s]
TextView = Callable[[str, torch.Generator], str]
CANVAS_MODE = "pad"  # the whole picture is kept, what is beside it is transparent
PIECE = 16  # samples that share a stream of random numbers


@dataclass(kw_only=True)
class Loader:
    """`batch(step)` is pure; `iterate(start, stop)` prepares the next batches while one is in use."""

    dataset: Dataset
    batch_size: int  # joint, over all processes
    size: int  # pixels of the views
    seed: int = 0
    views: int = 0  # further views of each image
    view: View | None = None  # None: `emblema.parts.views.Views()`
    further_view: View | None = None  # makes the further views; None: `view`
    canvas: Callable[[Record, int], Tensor] | None = None  # None: `emblema.data.pictures.canvas`
    canvas_size: int | None = None  # pixels of the decoded pictures; None: a quarter more than `size`
    captions: str = "any"  # of all that a record has, one is drawn at each step; "first": always its `text`
    text_view: TextView | None = None  # makes `other_texts` where a record has one caption
    make_batch: Callable[[list[Record], torch.Generator], Batch] | None = None  # replaces all of the above
    rank: int = 0
    world: int = 1
    threads: int = 2
    ahead: int = 2  # batches prepared in advance
    cache_mb: float | None = None  # decoded pictures kept in memory; None: a quarter of what is free
    _kept: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        n, b = len(self.dataset), self.batch_size
        if self.captions not in ("any", "first"):
            raise BadData(f'captions={self.captions!r} is not "any" or "first"')
        if n == 0:
            raise BadData("the data set has no records, so there is nothing to train on")
        if b > n:
            raise BadData(f"a batch of {b} does not fit a data set of {n} records: set optim.batch_size to {n} or less")
        if b % self.world:
            fits = b - b % self.world or self.world
            raise BadData(f"a joint batch of {b} cannot be dealt to {self.world} processes equally: use {fits}")
        self.canvas_size = self.canvas_size or self.size * 5 // 4
        share = _free_mb() / 4 / self.world if self.cache_mb is None else self.cache_mb
        self._keep = int(share * 2**20 / (4 * self.canvas_size**2))  # canvases
        self._order = lru_cache(2)(self._permutation)

    @property
    def epoch_steps(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def indices(self, step: int) -> list[int]:
        """Records of the joint batch of a step."""
        epoch, place = divmod(step, self.epoch_steps)
        order, start = self._order(epoch), place * self.batch_size
        rows = order[start : start + self.batch_size]
        return torch.cat([rows, order[: self.batch_size - len(rows)]]).tolist()

    def batch(self, step: int) -> Batch:
        """This process's rows of the joint batch of a step."""
        return self._batch(step, None)

    def iterate(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps start, ..., stop - 1, prepared by threads."""
        with ThreadPoolExecutor(1, "batches") as front, ThreadPoolExecutor(self.threads, "pictures") as pool:
            coming = [front.submit(self._batch, s, pool) for s in range(start, min(start + self.ahead, stop))]
            try:
                for step in range(start, stop):
                    batch = coming.pop(0).result()
                    if step + self.ahead < stop:
                        coming.append(front.submit(self._batch, step + self.ahead, pool))
                    yield batch
            finally:
                for future in coming:
                    future.cancel()

    def _permutation(self, epoch: int) -> Tensor:
        return torch.randperm(len(self.dataset), generator=seed.generator(self.seed, "epoch", epoch))

    def _batch(self, step: int, pool: ThreadPoolExecutor | None) -> Batch:
        every = self.indices(step)
        mine = self.batch_size // self.world
        first, last = self.rank * mine, (self.rank + 1) * mine
        # a process draws its own masks and noise: rank 0 of many draws what one process does
        own = (
            seed.generator(self.seed, "step", step, self.rank) if self.rank else seed.generator(self.seed, "step", step)
        )
        if self.make_batch is not None:
            batch = self.make_batch([self.dataset[i] for i in every[first:last]], own)
            batch.generator = own
            return batch
        low = first // PIECE * PIECE
        records = {at: self.dataset[every[at]] for at in range(low, min(-(-last // PIECE) * PIECE, len(every)))}
        rows = [records[at] for at in range(first, last)]
        batch = Batch(keys=[r.key for r in rows], generator=own)
        if rows[0].image is not None:
            pieces = [
                (low // PIECE + i, list(records)[s : s + PIECE]) for i, s in enumerate(range(0, len(records), PIECE))
            ]
            run = map if pool is None else pool.map
            made = list(run(lambda p: self._piece(step, p[0], [(every[at], records[at]) for at in p[1]]), pieces))
            stacked = [torch.cat(parts)[first - low : last - low] for parts in zip(*made)]
            batch.images, batch.views = stacked[0], stacked[1:]
        if any(r.text is not None for r in rows):
            self._captions(batch, rows, step, first)
        if any(r.label is not None for r in rows):
            batch.labels = torch.tensor([-1 if r.label is None else r.label for r in rows])
        return batch

    def _piece(self, step: int, piece: int, items: Sequence[tuple[int, Record]]) -> list[Tensor]:
        """The image and the further views of one piece of the joint batch: each uint8 [<= PIECE, 3, size, size]."""
        first = self.view or _default_view()
        views = [first, *[self.further_view or first] * self.views]
        canvases = torch.stack([self._canvas(i, r) for i, r in items])
        return [
            view(canvases, self.size, seed.generator(self.seed, "view", step, piece, v)) for v, view in enumerate(views)
        ]

    def _canvas(self, index: int, record: Record) -> Tensor:
        kept = self._kept.get(index)
        if kept is None:
            assert self.canvas_size is not None
            kept = (self.canvas or _default_canvas)(record, self.canvas_size)
            if len(self._kept) < self._keep:
                self._kept[index] = kept
        return kept

    def _captions(self, batch: Batch, rows: list[Record], step: int, first: int) -> None:
        """One caption a record, and another one where there is one."""
        batch.texts, others, several = [], [], self.text_view is not None
        for at, record in enumerate(rows, first):
            captions = [t for t in (record.text, *record.texts) if t is not None]
            if not captions:
                raise BadData(f"record {record.key!r} has no text but others of its batch do: drop it or give it one")
            several = several or len(captions) > 1
            random = seed.generator(self.seed, "caption", step, at) if several else None
            draw = self.captions == "any" and len(captions) > 1
            chosen = int(torch.randint(len(captions), (), generator=random)) if draw else 0
            batch.texts.append(captions[chosen])
            if len(captions) > 1:
                others.append(captions[(chosen + 1) % len(captions)])
            else:
                others.append(self.text_view(captions[0], random) if self.text_view and random else captions[0])
        batch.other_texts = [others] if several else []

    def fingerprint(self) -> str:
        """A hash of what the data set is: its card, length, and keys and texts of up to 256 records."""
        n = len(self.dataset)
        digest = hashlib.sha256(f"{self.dataset.card.name}/{self.dataset.card.sha256}/{n}".encode())
        for i in range(0, n, max(n // 256, 1)):
            record = self.dataset[i]
            digest.update(f"{record.key}\0{record.text}\0{record.label}\1".encode())
        return digest.hexdigest()[:16]


def _default_view() -> View:
    from emblema.parts.views import Views

    return Views()


def _default_canvas(record: Record, size: int) -> Tensor:
    from emblema.data.pictures import canvas

    return canvas(record.image, size, CANVAS_MODE)  # type: ignore[arg-type]


def _free_mb() -> float:
    """Memory that is free for use, in MB."""
    try:
        with open("/proc/meminfo") as f:
            lines: dict[str, Any] = dict(line.split(":", 1) for line in f)
        return int(lines["MemAvailable"].split()[0]) / 1024
    except (OSError, KeyError):
        return 2048.0
