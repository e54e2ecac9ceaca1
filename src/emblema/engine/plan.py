"""What a run will need, before it starts: parameters, memory by part, steps, time.

The model is made on the `meta` device, so nothing large is allocated. Memory is counted from shapes: weights,
gradients and moments exactly, activations as what autograd keeps a block, for the two towers. Time is the arithmetic
of a step over what this machine did in half a second, at the share of it that real steps reach.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import torch
from torch import nn

from emblema.core.errors import EmblemaError
from emblema.core.method import Optim
from emblema.engine.precision import resolved
from emblema.objectives.contrastive import TILED_FROM

ACHIEVED = {"fp32": 0.55, "bf16": 0.16}  # share of the speed of a large matrix product that a training step reaches
LOOP = 2.5  # a training step is forward and backward: 3 forwards; less what frozen and last layers save


@dataclass(frozen=True)
class Plan:
    """Figures of a run. Memory in bytes on one process, FLOPs of a step over all of them."""

    parameters: dict[str, int]  # by part of the model, all parameters under "total"
    trained: int
    memory: dict[str, int]
    batch_size: int
    world: int
    chunk: int | None
    precision: str
    steps: int
    pairs: int
    flops_per_step: float
    flops_per_second: float  # of one process
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def peak(self) -> int:
        """Bytes needed at once."""
        return self.memory["total"]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        from emblema.engine.logs import clock

        rows = [(k, f"{n / 1e6:,.2f} M") for k, n in self.parameters.items()]
        lines = ["parameters", *_table(rows), "", "memory of one process"]
        lines += _table([(k, _size(n)) for k, n in self.memory.items()])
        share = f", {self.world} processes" if self.world > 1 else ""
        chunk = f", in chunks of {self.chunk}" if self.chunk else ""
        lines += ["", f"batch {self.batch_size:,}{share}{chunk}, {self.precision}"]
        lines += [f"{self.steps:,} steps, {self.pairs:,} pairs, {self.flops_per_step / 1e12:,.2f} TFLOP a step"]
        lines += [f"about {clock(self.seconds)} at {self.flops_per_second / 1e9:,.0f} GFLOP/s a process (an estimate)"]
        return "\n".join(lines + [f"note: {n}" for n in self.notes])


def plan(
    method: Any,
    records: int,
    *,
    batch_size: int | None = None,
    chunk: int | None = None,
    steps: int | None = None,
    world: int = 1,
    words: float = 16.0,
    flop_rate: float | None = None,
) -> Plan:
    """The figures of pre-training `method` on a data set of `records` pairs.

    Args:
        batch_size, chunk, steps: override those of `method.optim`.
        world: processes that share the batch.
        words: mean tokens a caption, start and end included; rows are packed, so padding costs nothing.
        flop_rate: FLOP/s that one process reaches while training; None: estimated from a measurement of half a second.
    """
    optim: Optim = method.optim
    batch, chunk = batch_size or optim.batch_size, chunk if chunk is not None else optim.chunk
    if batch % world:
        raise EmblemaError(f"a joint batch of {batch} cannot be dealt to {world} processes equally")
    precision = resolved(optim.precision)
    with torch.device("meta"):
        module = method.build()
    vlm = module["vlm"]
    views = 1 + method.views
    own = batch // world
    seen = min(chunk or own, own)  # samples a tower sees at once

    image, text = _Tower(vlm.image, optim.patch_drop), _Tower(vlm.text, words=words)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    total = sum(p.numel() for p in module.parameters())
    kept = sum(b.numel() * b.element_size() for b in module.buffers())
    two = 2 if precision == "bf16" else 4
    # With chunks, one tower's graph is alive at a time; without, all are.
    per_image, per_text = image.activations(two), text.activations(two)
    graph = max(per_image, per_text) * seen if chunk else (views * per_image + per_text) * own
    memory = {
        "weights": 4 * total + kept + (4 * total if optim.ema is not None else 0),
        "weights in bf16 (autocast)": 2 * trained if precision == "bf16" else 0,
        "gradients": 4 * trained,
        "optimiser": 8 * trained,
        "activations": int(graph),
        "features": int(4 * vlm.dim * (views + 1) * (batch + own) * 2),
        "logits": int(12e3 * batch) if batch > TILED_FROM else 4 * 4 * own * batch,
        "pictures of 3 batches": 3 * own * views * 3 * vlm.image.image_size**2,
    }
    memory = {k: v for k, v in memory.items() if v}
    memory["total"] = sum(memory.values())
    steps = steps or optim.total(-(-records // batch))
    flops = batch * (3 + bool(chunk)) * (views * image.flops() + text.flops())
    rate = flop_rate or measured(precision) * ACHIEVED[precision]
    notes = []
    dense = 4 * 4 * own * batch
    if dense > 2**30:
        notes.append(f"the full matrix of logits would take {_size(dense)}; the loss is computed in tiles")
    largest = max((k for k in memory if k != "total"), key=memory.__getitem__)
    free = _free_bytes()
    if largest == "activations" and memory["activations"] > memory["total"] / 2 and not chunk:
        without = memory["total"] - memory["activations"]
        fits = max(int((free - without) * 0.8 / max(per_image, per_text)), 1)
        if memory["total"] > free:
            notes.append(
                f"activations dominate and do not fit: try optim.chunk={min(2 ** (fits.bit_length() - 1), own)}"
            )
        else:
            notes.append("activations dominate; optim.chunk trades about a third more time for less of them")
    if memory["total"] > free:
        notes.append(f"{_size(memory['total'])} are needed, {_size(free)} are free on this machine")
    parts = {"image tower": _count(vlm.image), "text tower": _count(vlm.text), "logit scale": _count(vlm.logit_scale)}
    heads = {n: _count(m) for n, m in module.items() if n != "vlm"}
    return Plan(
        parameters={**parts, **heads, "total": total},
        trained=trained,
        memory=memory,
        batch_size=batch,
        world=world,
        chunk=chunk,
        precision=precision,
        steps=steps,
        pairs=steps * batch,
        flops_per_step=flops,
        flops_per_second=rate,
        seconds=steps * flops / world / rate,
        notes=tuple(notes),
    )


class _Tower:
    """Arithmetic and activations of one tower for one sample."""

    def __init__(self, tower: Any, patch_drop: float = 0.0, words: float | None = None):
        self.tower, self.depth, self.width = tower, getattr(tower, "depth", 0), tower.width
        self.matrices = sum(p.numel() for m in tower.modules() for p in _products(m))
        config = getattr(tower, "config", None)
        if words is not None:
            self.length = words
        elif self.depth and config is not None and hasattr(config, "patch_size"):
            side = tower.image_size // config.patch_size
            self.length = round(side * side * (1 - patch_drop)) + bool(getattr(config, "class_token", False))
        else:
            self.length = (tower.image_size / 32) ** 2 if hasattr(tower, "image_size") else 1
        heads = getattr(config, "heads", 1)
        self.scores = heads * (words or self.length) ** 2
        self.hidden = round(self.width * getattr(config, "mlp_ratio", 4.0))

    def flops(self) -> float:
        """Of a forward pass: 2 a weight and position, and the two products of attention."""
        if not self.depth:  # a convolutional tower: weights are used at about 8 x 8 x 32^2 / 2^depth places
            return 2 * self.matrices * self.length * 6
        return 2 * self.matrices * self.length + 4 * self.depth * self.length**2 * self.width

    def activations(self, size: int) -> float:
        """Bytes that autograd keeps: `size` a number that a product reads, 4 in the residual stream and the softmax.

        The last layer is computed at the pooled position only and keeps about a quarter.
        """
        if not self.depth:
            return 4 * 40 * self.length * self.width
        scores = self.scores * (4 if size == 4 else 4 + size)
        block = self.length * (size * (7 * self.width + 2 * self.hidden) + 2 * 4 * self.width) + scores
        return (self.depth - 0.75) * block


def _products(module: nn.Module) -> list[nn.Parameter]:
    """The weights of a module that take part in matrix products."""
    if isinstance(module, nn.Embedding):
        return []
    return [p for n, p in module.named_parameters(recurse=False) if p.ndim >= 2 and "position" not in n]


def measured(precision: str) -> float:
    """FLOP/s of a large matrix product here, best of half a second."""
    n = 1024
    a, b = (torch.randn(n, n, dtype=torch.bfloat16 if precision == "bf16" else torch.float32) for _ in range(2))
    best, end = float("inf"), perf_counter() + 0.5
    _ = a @ b
    while perf_counter() < end:
        began = perf_counter()
        _ = a @ b
        best = min(best, perf_counter() - began)
    return 2 * n**3 / best


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _free_bytes() -> int:
    from emblema.engine.loader import _free_mb

    return int(_free_mb() * 2**20)


def _size(n: float) -> str:
    return f"{n / 2**30:,.2f} GB" if n >= 2**30 else f"{n / 2**20:,.1f} MB"


def _table(rows: list[tuple[str, str]]) -> list[str]:
    wide, right = max(len(a) for a, _ in rows), max(len(b) for _, b in rows)
    return [f"  {a:<{wide}}  {b:>{right}}" for a, b in rows]
