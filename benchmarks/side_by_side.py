"""What every benchmark here ends with: ratios of interleaved rounds, one JSON line."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    }
    print(json.dumps(line, indent=1))
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with open(out, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
