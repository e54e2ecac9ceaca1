"""One JSON line a run: the only place that numbers come from. Tables, figures and pages are made of these lines."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import emblema
from emblema.core.errors import BadData

REQUIRED = ("system", "model", "task", "data", "split", "protocol", "metrics", "seeds", "seconds")
LONG = ("tables", "predictions")  # of an evaluation, kept out of the line


def line(
    evaluation: Mapping[str, Any],
    *,
    system: str,
    model: str,
    fields: Mapping[str, Any] | None = None,
    data_hash: str = "",
    **more: Any,
) -> dict[str, Any]:
    """A result line from what a task found and who was measured.

    `fields` are the resolved settings of system and task, `data_hash` identifies the records that were read.
    """
    short = {k: v for k, v in evaluation.items() if k not in LONG}
    whole = {
        "system": system,
        "model": model,
        **short,
        "fields": dict(fields or {}),
        "data_hash": data_hash,
        "peak_memory_mb": peak_memory_mb(),
        "environment": environment(),
        **more,
    }
    return checked(plain(whole))


def checked(result: Mapping[str, Any]) -> dict[str, Any]:
    """The line itself, if it has all that is needed to compare it with others."""
    missing = [name for name in REQUIRED if name not in result]
    if missing:
        raise BadData(f"a result line lacks {', '.join(missing)}")
    if not {"name", "hash"} <= set(result["protocol"]):
        raise BadData("a result line's protocol needs a name and a hash")
    for name, value in result["metrics"].items():
        if not {"value", "low", "high"} <= set(value):
            raise BadData(f"the metric {name} needs value, low and high (null where there is no interval)")
    return dict(result)


def append(path: str | Path, result: Mapping[str, Any]) -> None:
    """Add a line to a file in one write, so that runs side by side do not mix."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(checked(plain(result)), ensure_ascii=False, allow_nan=False) + "\n"
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def read(*paths: str | Path) -> Iterator[dict[str, Any]]:
    """The lines of result files, claims among them, in order; folders stand for the `.jsonl` files in them."""
    for path in map(Path, paths):
        if not path.exists():
            raise BadData(f"no result file or folder {path}: `emblema evaluate ... --out {path}` writes one")
        for file in sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]:
            for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                if not text.strip():
                    continue
                try:
                    one = json.loads(text)
                    yield one if one.get("kind") == "claim" else checked(one)
                except (ValueError, BadData) as error:
                    raise BadData(f"{file}, line {number} is no result line: {error}") from error


def plain(value: Any) -> Any:
    """What JSON can hold: tuples become lists, paths texts, numbers that are not finite null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)


def environment() -> dict[str, Any]:
    """What the numbers of time and memory depend on; no host name, no path."""
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "emblema": emblema.__version__,
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [text.split(":", 1)[1].strip() for text in file if text.startswith("model name")]
        name = names[0]
    except (OSError, IndexError):
        name = platform.processor() or platform.machine()
    return f"{name} x {os.cpu_count()}"


def peak_memory_mb() -> float | None:
    """The process's largest resident size so far."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 if platform.system() != "Darwin" else 1024**2), 1)
