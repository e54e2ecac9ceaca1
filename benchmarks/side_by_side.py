"""What every benchmark here ends with: ratios of interleaved rounds, one JSON line."""

from __future__ import annotations

import json
import os
import statistics
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from emblema.report.result import environment


def compare(what: str, own: Sequence[float], against: str, peer: Sequence[float]) -> dict[str, Any]:
    """How many times as fast: the median of the rounds' ratios peer / own, and their range."""
    ratios = [p / o for p, o in zip(peer, own, strict=True)]
    return {
        "what": what,
        "against": against,
        "ratio": round(statistics.median(ratios), 3),
        "low": round(min(ratios), 3),
        "high": round(max(ratios), 3),
        "seconds": [round(statistics.median(own), 5), round(statistics.median(peer), 5)],
    }


@cache
def product_rates(rounds: int = 20) -> dict[str, float]:
    """GFLOP/s of products of matrices here, [1600, 384] x [384, 1536]: what separates one processor from another."""
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        x, w, seconds = torch.randn(1600, 384, dtype=dtype), torch.randn(384, 1536, dtype=dtype), []
        for _ in range(rounds):
            began = time.perf_counter()
            x @ w
            seconds.append(time.perf_counter() - began)
        rates[name] = round(2e-9 * x.shape[0] * w.numel() / statistics.median(seconds))
    return rates


def settings_of(options: Namespace) -> dict[str, Any]:
    """What a line keeps of its command: all but the place it is written to."""
    return {name: value for name, value in vars(options).items() if name != "out"}


def finish(
    benchmark: str,
    comparisons: Sequence[Mapping[str, Any]],
    out: str | Path | None,
    notes: Sequence[str] = (),
    **details: Any,
) -> None:
    """Print the line; append it to `out`."""
    line = {
        "benchmark": benchmark,
        "comparisons": list(comparisons),
        "notes": list(notes),
        **details,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
        "environment": environment(),
        "gflops": product_rates(),
    }
    print(json.dumps(line, indent=1))
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with open(out, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
