"""Frozen towers at full speed: weights converted once, pictures decoded in threads while the encoder runs.

Autocast is the wrong tool here: with parameters that ask for no gradient, CPU autocast copies the weights at
every call. So where the hardware multiplies in bf16, the towers are copied and converted once. The
model that was handed in keeps its own weights and precision.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from emblema.core.batch import Level
from emblema.core.preprocess import Preprocess
from emblema.encoders.tower import ImageTower, Tower
from emblema.engine.threads import spread
from emblema.frameworks.vlm import VLM, unit

AHEAD = 3  # batches decoded before they are needed
PART = 16  # pictures that a CPU thread encodes at once: the maps of more leave its caches
Errors = list[tuple[int, str]]


class Encoder:
    """Pictures and texts -> features, with a frozen `VLM`.

    `precision` is "fp32", "bf16" or "auto" (bf16 where the hardware has it). What comes out is always fp32.
    """

    def __init__(
        self,
        vlm: VLM,
        preprocess: Preprocess,
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int = 64,
        threads: int | None = None,
    ):
        from emblema.engine.precision import resolved

        self.vlm, self.preprocess, self.batch_size = vlm, preprocess, batch_size
        self.device = torch.device(_best_device() if device == "auto" else device)
        self.precision = resolved(precision, self.device)
        self.threads = threads or min(8, os.cpu_count() or 1)
        self.vlm.to(self.device)
        self.towers = converted(vlm, torch.bfloat16) if self.precision == "bf16" else vlm

    def images(self, sources: Sequence[Any], stage: str = "joint") -> tuple[dict[str, Tensor], Errors]:
        """Features of pictures, and which of them could not be read (their rows are NaN).

        `stage`: "joint" {"pooled": [N, D] unit, "norm": [N]}; "hidden" {"hidden": [N, width]}, before the projection;
        "patches" {"patches": [N, H, W, D] unit}; "values" {"values": the same by the value path};
        "embedded" {"tokens": [N, L, width]}, and {"beside": [N, K]} of a tower that has it.
        """
        parts: dict[str, Tensor] = {}
        errors: Errors = []
        for start, pixels, broken in self._decoded(sources):
            for name, rows in self.encode(pixels, stage).items():
                if name not in parts:
                    parts[name] = torch.empty(len(sources), *rows.shape[1:])
                parts[name][start : start + len(rows)] = rows
            for index, reason in broken:
                errors.append((start + index, reason))
        for rows in parts.values():
            rows[[i for i, _ in errors]] = torch.nan
        return parts, errors

    def stream(self, sources: Sequence[Any], stage: str = "joint") -> Iterator[tuple[int, dict[str, Tensor], Errors]]:
        """(start, features, errors) batch by batch, for results that do not fit into memory."""
        for start, pixels, broken in self._decoded(sources):
            yield start, self.encode(pixels, stage), [(start + i, reason) for i, reason in broken]

    def encode(self, pixels: Tensor, stage: str = "joint") -> dict[str, Tensor]:
        """uint8 [B, 3, S, S] -> features, fp32 on the CPU."""
        parts = self._spread(lambda part: self._encode(part, stage), pixels)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @torch.inference_mode()
    def _encode(self, pixels: Tensor, stage: str) -> dict[str, Tensor]:
        tower = self.towers.image
        out = features_at(tower, self._input(tower, pixels), stage)
        return {name: rows.float().cpu() for name, rows in out.items()}

    def dense(self, pixels: Tensor, features: str = "plain", radius: int = 1) -> Tensor:
        """uint8 [B, 3, H, W] of any size that the tower takes -> [B, h, w, D] unit, fp32 on the CPU.

        `features`: "plain" patch tokens, their "values" path, or "local" (see `VLM.encode_local`).
        """
        return torch.cat(self._spread(lambda part: self._dense(part, features, radius), pixels))

    @torch.inference_mode()
    def _dense(self, pixels: Tensor, features: str, radius: int) -> Tensor:
        raw = self._input(self.towers.image, pixels)
        if features == "local":
            return self.towers.encode_local(raw, radius).float().cpu()
        return self.towers.encode_patches(raw, values=features == "values").float().cpu()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str], chunk: int = 256) -> Tensor:
        """[N, D] unit, fp32. Texts of similar length are encoded together; the order is that of `texts`."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = torch.empty(len(texts), self.vlm.dim)
        for start in range(0, len(order), chunk):
            rows = order[start : start + chunk]
            out[rows] = self.towers.encode_text([texts[i] for i in rows]).float().cpu()
        return out

    def captions(self, sources: Sequence[Any], beams: int = 1) -> tuple[list[str | None], Errors]:
        """A text for each picture, by a model with a decoder (in fp32); None where a picture could not be read."""
        said: list[str | None] = [None] * len(sources)
        errors: Errors = []
        for start, pixels, broken in self._decoded(sources):
            found = self.vlm.caption(pixels.to(self.device), beams=beams)  # type: ignore[operator]
            bad = dict(broken)
            said[start : start + len(found)] = [None if i in bad else text for i, text in enumerate(found)]
            errors += [(start + index, reason) for index, reason in broken]
        return said, errors

    def _spread(self, work: Callable[[Tensor], Any], pixels: Tensor) -> list[Any]:
        """`work` on parts of a batch, which the threads of a CPU share out."""
        threads = torch.get_num_threads()
        if self.device.type != "cpu" or threads == 1 or len(pixels) < 2:
            return [work(pixels)]
        return spread(work, pixels.split(min(PART, -(-len(pixels) // threads))))

    def _input(self, tower: Tower, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.device)
        if self.precision == "fp32" or not isinstance(tower, ImageTower):
            return pixels
        return tower.normalise(pixels).bfloat16()

    def _decoded(self, sources: Sequence[Any]) -> Iterator[tuple[int, Tensor, Errors]]:
        """Batches of pixels in order, decoded ahead of their use."""
        from emblema.data.pictures import load_batch

        def load(start: int):
            batch = [sources[i] for i in range(start, min(start + self.batch_size, len(sources)))]
            return start, *load_batch(batch, self.preprocess, threads=1)

        with ThreadPoolExecutor(self.threads) as pool:
            starts = iter(range(0, len(sources), self.batch_size))
            waiting = [pool.submit(load, s) for _, s in zip(range(self.threads + AHEAD), starts)]
            while waiting:
                done = waiting.pop(0).result()
                following = next(starts, None)
                if following is not None:
                    waiting.append(pool.submit(load, following))
                yield done


STAGE = {Level.EMBEDDED: "embedded", Level.PATCHES: "patches", Level.POOLED: "joint"}


def features_at(tower: Tower, raw: Tensor, stage: str) -> dict[str, Tensor]:
    """Pixels [B, 3, S, S] -> what `Encoder.images` tells of a stage, one row a picture."""
    if stage == "joint":
        z = tower.encode(raw).float()  # [B, D]
        return {"pooled": unit(z), "norm": z.norm(dim=-1)}
    if stage == "hidden":
        return {"hidden": hidden(tower, raw)}
    if stage == "patches":
        return {"patches": unit(tower.dense(raw))}
    if stage == "values":
        return {"values": unit(tower.dense(raw, values=True))}
    if stage == "embedded":
        tokens = tower.embed(raw)
        return {"tokens": tokens.x} if tokens.beside is None else {"tokens": tokens.x, "beside": tokens.beside}
    raise ValueError(f'unknown stage {stage!r}: use "joint", "hidden", "patches", "values" or "embedded"')


def hidden(tower: Tower, raw: Any) -> Tensor:
    """The pooled feature before the projection into the joint space: [B, width]."""
    return tower.pool(tower.transform(tower.embed(raw)))


def converted(vlm: VLM, dtype: torch.dtype) -> VLM:
    """A frozen copy whose towers have weights of `dtype`; scale, bias and pixel statistics stay in fp32."""
    twin = copy.deepcopy(vlm).requires_grad_(False).eval()
    for tower in (twin.image, twin.text):
        statistics = {n: b for n, b in tower.named_buffers() if n in ("mean", "std")}
        tower.to(dtype)
        for name, buffer in statistics.items():
            setattr(tower, name, buffer.float())
    return twin


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
