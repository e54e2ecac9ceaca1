"""The state of a run on disk: RUN/checkpoints/step-000123/, written so that a kill at any moment loses nothing.

A checkpoint is made in a hidden folder beside its place, flushed to the disk, and renamed: it is there whole or not at
all. It holds tensors (safetensors) and JSON; no pickle is written or read. Processes are equal after a step, so the
first writes for all, and any number of processes resumes.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from emblema.core.errors import BadCheckpoint, EmblemaError

if TYPE_CHECKING:
    from emblema.engine.optimise import State

KEEP = 2


class NotSaved(EmblemaError):
    """A checkpoint could not be written; those before it are untouched."""


def save(run: Path, step: int, state: State, info: dict[str, Any], keep: int = KEEP) -> Path:
    """Write the checkpoint of a step and remove all but the last `keep`."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    tidy(run)
    final, partial = folder / f"step-{step:06d}", folder / f".partial-{step:06d}"
    parts = {"model": _weights(state.module), "optimizer": _moments(state)}
    if state.ema is not None:
        parts["ema"] = _weights(state.ema)
    try:
        _check_space(folder, parts)
        partial.mkdir()
        for name, tensors in parts.items():
            save_file(tensors, partial / f"{name}.safetensors")
        sizes = {f.name: f.stat().st_size for f in partial.iterdir()}
        text = json.dumps({"format": 1, "step": step, "files": sizes, **info}, indent=1)
        (partial / "state.json").write_text(text, encoding="utf-8")
        for file in partial.iterdir():
            _flush(file)
        _flush(partial)
        if final.exists():  # damaged, else the run would have begun behind it
            shutil.rmtree(final)
        partial.rename(final)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        before = latest(run)
        raise NotSaved(
            f"the checkpoint of step {step} was not written ({error}). "
            + (f"That of step {_step(before)} is whole. " if before else "There is none before it. ")
            + f"Free some space on the disk of {run}; the same command then resumes."
        ) from error
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def checkpoints(run: Path) -> list[Path]:
    """All whole checkpoints of a run, oldest first."""
    found = (run / "checkpoints").glob("step-*")
    return sorted((f for f in found if _whole(f)), key=_step)


def latest(run: Path) -> Path | None:
    """The newest whole checkpoint."""
    return next(reversed(checkpoints(run)), None)


def tidy(run: Path) -> None:
    """Remove what a kill left half-written."""
    for partial in (run / "checkpoints").glob(".partial-*"):
        shutil.rmtree(partial, ignore_errors=True)


def load(folder: Path, state: State) -> dict[str, Any]:
    """Put a checkpoint into the run's state; returns its `state.json`."""
    info = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if info.get("format") != 1:
        raise BadCheckpoint(f"{folder} has format {info.get('format')!r}, this version reads 1")
    _fill(state.module, load_file(folder / "model.safetensors"), folder)
    if state.ema is not None:
        _fill(state.ema, load_file(folder / "ema.safetensors"), folder)
    _fill_moments(state, load_file(folder / "optimizer.safetensors"), folder)
    return info


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Where two configurations differ, one line each."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(k for k in new if k not in old)]
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{at}.{k}" if at else str(k))]
    return [] if old == new else [f"{at}: {old!r} in the run, {new!r} now"]


def write_json(path: Path, value: Any) -> None:
    """Write a small file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    _flush(partial)
    partial.replace(path)


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers; a tensor with two names (a tied weight) is kept under the first."""
    seen: set[tuple[int, int]] = set()
    kept = {}
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise EmblemaError(f"{name} of the module's state is no tensor; keep it in a buffer, or in the method")
        place = (tensor.data_ptr(), tensor.numel())
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        kept[name] = tensor.detach().contiguous().clone() if _is_view(tensor) else tensor.detach().contiguous()
    return kept


def _is_view(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()


def _fill(module: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    wanted = _weights(module)
    missing, unknown = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if missing or unknown:
        raise BadCheckpoint(f"{folder} does not fit the model: it lacks {missing[:5]} and has unknown {unknown[:5]}")
    own = module.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            if own[name].shape != tensor.shape:
                raise BadCheckpoint(
                    f"{folder}: {name} is {tuple(tensor.shape)}, the model wants {tuple(own[name].shape)}"
                )
            own[name].copy_(tensor)


def _moments(state: State) -> dict[str, Tensor]:
    """The optimiser's tensors by parameter name: `image.blocks.0.norm1.weight/exp_avg`."""
    moments = {}
    for name, parameter in state.module.named_parameters():
        for key, value in state.optimiser.state.get(parameter, {}).items():
            moments[f"{name}/{key}"] = value.detach().contiguous()
    return moments


def _fill_moments(state: State, tensors: dict[str, Tensor], folder: Path) -> None:
    named = dict(state.module.named_parameters())
    for key, tensor in tensors.items():
        name, kind = key.rsplit("/", 1)
        if name not in named:
            raise BadCheckpoint(f"{folder}: optimiser state of unknown parameter {name}")
        parameter = named[name]
        where = parameter.device if kind != "step" or state.optimiser.defaults.get("fused") else "cpu"
        state.optimiser.state[parameter][kind] = tensor.to(where)


def _check_space(folder: Path, parts: dict[str, dict[str, Tensor]]) -> None:
    need = sum(t.numel() * t.element_size() for p in parts.values() for t in p.values())
    free = shutil.disk_usage(folder).free
    if free < need * 1.02 + 2**20:
        raise OSError(28, f"No space left on device: {need / 2**20:.0f} MB needed, {free / 2**20:.0f} MB free")


def _whole(folder: Path) -> bool:
    try:
        files = json.loads((folder / "state.json").read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _flush(path: Path) -> None:
    """Make sure that a file, or the entries of a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
