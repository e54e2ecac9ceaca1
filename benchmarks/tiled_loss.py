"""Contrastive loss and gradient: the tiled form beside `open_clip.loss.ClipLoss`, time and extra memory.

    python benchmarks/tiled_loss.py --batch 4096 16384 --rounds 5 --out benchmarks/results/tiled_loss.jsonl

Variants run in turn (A B C D A B C D ...); a ratio is the median of the per-round ratios, with its range.
Extra peak memory is the high-water mark of a child process minus that after a step at B = 1024.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # for both sides; must be set before torch is imported

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from side_by_side import compare, finish
from torch import Tensor

from emblema.objectives.tiled import tiled_contrastive

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def clip_loss(z_image: Tensor, z_text: Tensor, scale: Tensor) -> Tensor:
    from open_clip.loss import ClipLoss

    return ClipLoss()(z_image, z_text, scale)


def clip_loss_amp(z_image: Tensor, z_text: Tensor, scale: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return clip_loss(z_image, z_text, scale)


VARIANTS: dict[str, Loss] = {
    "open_clip fp32": clip_loss,
    "open_clip amp": clip_loss_amp,
    "tiled fp32": tiled_contrastive,
    "tiled bf16": lambda *inputs: tiled_contrastive(*inputs, bf16=True),
}


def inputs(batch: int, dim: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = [F.normalize(torch.randn(batch, dim, generator=generator), dim=-1) for _ in range(2)]
    return [x.requires_grad_() for x in (*z, torch.tensor(50.0))]


def step(loss: Loss, tensors: list[Tensor]) -> list[Tensor]:
    """One loss and its gradient."""
    for x in tensors:
        x.grad = None
    loss(*tensors).backward()
    return [x.grad for x in tensors if x.grad is not None]


def extra_megabytes(variant: str, batch: int, dim: int) -> float:
    command = [sys.executable, __file__, "--child", variant, "--batch", str(batch), "--dim", str(dim)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def child(variant: str, batch: int, dim: int) -> None:
    """Print the extra peak memory of one step, in MB."""
    tensors = inputs(batch, dim)
    step(VARIANTS[variant], inputs(1024, dim))
    before = peak_kilobytes()
    step(VARIANTS[variant], tensors)
    print((peak_kilobytes() - before) / 1024)


def peak_kilobytes() -> int:
    """This process's own high-water mark. (`ru_maxrss` would start at the parent's.)"""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def measure(batch: int, dim: int, rounds: int, names: list[str], memory: bool) -> dict[str, object]:
    tensors = inputs(batch, dim)
    gradients = {name: torch.cat([g.flatten() for g in step(VARIANTS[name], tensors)]) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            start, cpu_start = time.perf_counter(), time.process_time()
            step(VARIANTS[name], tensors)
            seconds[name].append(time.perf_counter() - start)
            cpu_seconds[name].append(time.process_time() - cpu_start)
    peer = names[0]
    rows = {}
    for name in names:
        ratios = [a / b for a, b in zip(seconds[peer], seconds[name], strict=True)]
        error = (gradients[name] - gradients[peer]).norm() / gradients[peer].norm()
        rows[name] = {
            "seconds": statistics.median(seconds[name]),
            "speedup": statistics.median(ratios),
            "range": [min(ratios), max(ratios)],
            "cpu_speedup": statistics.median(a / b for a, b in zip(cpu_seconds[peer], cpu_seconds[name], strict=True)),
            "gradient_error": float(error),
            "extra_mb": extra_megabytes(name, batch, dim) if memory else None,
        }
    ours = [name for name in names if name.startswith("tiled")]
    found = [
        compare(f"contrastive loss, B={batch}, {name}", seconds[name], p, seconds[p])
        for name in ours
        for p in names
        if p not in ours
    ]
    return {"batch": batch, "dim": dim, "rounds": rounds, "peer": peer, "variants": rows, "comparisons": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--large", action="store_true", help="also B = 32768, the tiled forms only")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--out", type=Path, help="append one JSON line here")
    parser.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child, args.batch[0], args.dim)

    names = list(VARIANTS)
    jobs = [(batch, names) for batch in args.batch] + ([(32768, names[2:])] if args.large else [])
    results = []
    print(
        f"{'B':>6} {'variant':<15} {'ms':>8} {'speed-up':>8} {'range':>14} {'cpu x':>6} "
        f"{'gradient':>9} {'extra MB':>9} {'kB/row':>7}"
    )
    for batch, chosen in jobs:
        result = measure(batch, args.dim, args.rounds, chosen, not args.no_memory)
        results.append(result)
        for name, r in result["variants"].items():  # type: ignore[attr-defined]
            span = "[{:.2f}..{:.2f}]".format(*r["range"])
            mb = r["extra_mb"] if r["extra_mb"] is not None else float("nan")
            print(
                f"{batch:>6} {name:<15} {r['seconds'] * 1e3:>8.0f} {r['speedup']:>8.2f} {span:>14} "
                f"{r['cpu_speedup']:>6.2f} {r['gradient_error']:>9.1e} {mb:>9.0f} {mb * 1024 / batch:>7.1f}"
            )
    memory = [
        f"B={r['batch']}: {n} needs {v['extra_mb']:.0f} MB"
        for r in results
        for n, v in r["variants"].items()
        if v["extra_mb"]
    ]
    finish(
        "tiled_loss",
        [c for r in results for c in r["comparisons"]],
        args.out,
        memory,
        threads=torch.get_num_threads(),
        results=[{k: v for k, v in r.items() if k != "comparisons"} for r in results],
    )
    return None


if __name__ == "__main__":
    main()
