"""Features computed once and kept on disk, memory-mapped; a stale one cannot be served.

The key of an entry is a hash of what the features depend on: every tensor and setting of the tower, the
preprocessing, the precision, and the bytes (or path, size and time) of every picture. Whatever changes, the key
changes. An entry is written under a temporary name and renamed when complete: a crash leaves nothing that looks
like one, and of two writers the first wins.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emblema.core.batch import Dataset, Level
from emblema.core.errors import BadData
from emblema.engine.encode import STAGE, Encoder, Errors

FORMAT = 2  # of an entry; part of the key
FEW_TEXTS = 64  # fewer are encoded in less time than a file costs


@dataclass(frozen=True)
class Entry:
    """Features of a split in its order: name -> [N, ...]. `key` names them, `hit` says they were there already."""

    key: str
    arrays: dict[str, Tensor]
    hit: bool

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]


class Features:
    """The cache. `directory` defaults to $EMBLEMA_CACHE, else $XDG_CACHE_HOME/emblema, else ~/.cache/emblema."""

    def __init__(self, directory: str | Path | None = None):
        self.directory = Path(directory) if directory is not None else default_directory()

    def read(self, encoder: Encoder, data: Dataset, level: Level | str = Level.POOLED) -> Entry:
        """Features of all records of `data`, from the cache or computed now. "hidden" and "values" are levels too."""
        stage = _stage(level)
        key = self.key(encoder, data, stage)
        folder = self.directory / "features" / key
        if (folder / "entry.json").exists():
            return Entry(key, _load(folder), hit=True)
        arrays = self.compute(encoder, data, stage)
        self._store(folder, arrays, {"data": data.card.name, "records": len(data), "stage": stage})
        return Entry(key, _load(folder) if folder.exists() else arrays, hit=False)

    def texts(self, encoder: Encoder, texts: Sequence[str]) -> Tensor:
        """Features [N, D] of texts, from the cache or computed now; a few are not worth a file.

        The key is a hash of the text tower, its tokenizer, precision, device and every text. A tower whose tokenizer
        cannot be told from another (no `identity()`) is asked each time.
        """
        tokenizer = getattr(getattr(encoder.vlm.text, "tokenizer", None), "identity", None)
        if tokenizer is None or len(texts) < FEW_TEXTS:
            return encoder.texts(texts)
        parts = {
            "format": FORMAT,
            "tower": fingerprint(encoder.vlm.text),
            "tokenizer": tokenizer(),
            "precision": encoder.precision,
            "device": encoder.device.type,
            "texts": hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest(),
        }
        folder = self.directory / "features" / _hashed(parts)
        if not (folder / "entry.json").exists():
            z = encoder.texts(texts)
            self._store(folder, {"text": z}, {"texts": len(texts)})
            return z
        return _load(folder)["text"]

    def files(self, encoder: Encoder, paths: Sequence[Path], stage: str = "joint") -> tuple[dict[str, Tensor], Errors]:
        """As `encoder.images(paths, stage)`, kept: pictures that cannot be read are remembered, too."""
        key = self.key(encoder, Files(paths), stage)  # type: ignore[arg-type]
        folder = self.directory / "features" / key
        if (folder / "entry.json").exists():
            return _load(folder), [(i, why) for i, why in json.loads((folder / "entry.json").read_text())["errors"]]
        arrays, errors = encoder.images(paths, stage)
        self._store(folder, arrays, {"data": "files", "records": len(paths), "stage": stage, "errors": errors})
        return arrays, errors

    @staticmethod
    def key(encoder: Encoder, data: Dataset, stage: str) -> str:
        """Hash of everything that the features depend on."""
        parts = {
            "format": FORMAT,
            "tower": fingerprint(encoder.vlm.image),
            "precision": encoder.precision,
            "device": encoder.device.type,
            "preprocess": encoder.preprocess.to_json(),
            "data": identity(data),
            "stage": stage,
        }
        return _hashed(parts)

    @staticmethod
    def compute(encoder: Encoder, data: Dataset, level: Level | str = Level.POOLED) -> dict[str, Tensor]:
        """The same without a cache."""
        arrays, errors = encoder.images(Pictures(data), _stage(level))  # type: ignore[arg-type]
        if errors:
            shown = "; ".join(f"{data[i].key}: {reason}" for i, reason in errors[:3])
            raise BadData(f"{len(errors)} of {len(data)} pictures of {data.card.name} cannot be read: {shown}")
        return arrays

    def _store(self, folder: Path, arrays: dict[str, Tensor], about: dict[str, Any]) -> None:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
        except OSError:
            return  # a read-only disk costs the cache, not the result
        try:
            for name, array in arrays.items():
                np.save(partial / f"{name}.npy", array.numpy())
            about["sizes"] = {n: (partial / f"{n}.npy").stat().st_size for n in arrays}
            (partial / "entry.json").write_text(json.dumps(about))
            os.rename(partial, folder)
        except OSError:  # another process was first, or the disk is full
            shutil.rmtree(partial, ignore_errors=True)


def _hashed(parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _stage(level: Level | str) -> str:
    stage = level if isinstance(level, str) else STAGE.get(level)
    if stage is None:
        raise ValueError("Level.PIXELS reads pictures, so nothing can be cached; read the data set itself")
    return stage


class Pictures(Sequence[Any]):
    """The pictures of a data set as a sequence of sources."""

    def __init__(self, data: Dataset):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        image = self.data[index].image
        if image is None or isinstance(image, list):
            what = "no picture" if image is None else "a clip of several frames"
            raise BadData(f"{self.data[index].key} of {self.data.card.name} has {what}; one picture a record is read")
        return image


class Files:
    """Picture files without a data set, for a key."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths

    def identity(self) -> str:
        return hashlib.sha256(b"\n".join(part for p in self.paths for part in _picture_identity(p))).hexdigest()


def default_directory() -> Path:
    if chosen := os.environ.get("EMBLEMA_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emblema"


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of a module: classes, settings (activation, heads, pooling ...) and every tensor with its bytes."""
    digest = hashlib.sha256()
    for name, part in module.named_modules():
        plain = {k: repr(v) for k, v in sorted(vars(part).items()) if k != "training" and _is_setting(v)}
        digest.update(f"{name}:{type(part).__module__}.{type(part).__qualname__}:{plain}\n".encode())
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()], key=lambda pair: pair[0]):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


def weights_id(module: nn.Module) -> str:
    """Sixteen hexadecimal digits that stand for the weights: names and bytes, no code."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}:{tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()[:16]


def _is_setting(value: Any) -> bool:
    return isinstance(value, int | float | str | bool | tuple) or (is_dataclass(value) and not isinstance(value, type))


def identity(data: Dataset) -> str:
    """SHA-256 of a split: its name, and key and picture of every record, in order.

    A set that makes its pictures from a seed may spare the work with its own `identity()`.
    """
    if hasattr(data, "identity"):
        return str(data.identity())  # type: ignore[attr-defined]
    digest = hashlib.sha256(f"{data.card.name}:{data.card.sha256}:{len(data)}\n".encode())
    for part in _picture_parts(data):
        digest.update(part)
    return digest.hexdigest()


def _picture_parts(data: Dataset) -> Iterable[bytes]:
    for i in range(len(data)):
        record = data[i]
        yield f"\n{record.key}:".encode()
        yield from _picture_identity(record.image)


def _picture_identity(image: Any) -> Iterable[bytes]:
    if isinstance(image, bytes):
        yield hashlib.sha256(image).digest()
    elif isinstance(image, str | Path):
        stat = os.stat(image) if os.path.exists(image) else None
        yield f"{Path(image).resolve()}:{stat.st_size if stat else 0}:{stat.st_mtime_ns if stat else 0}".encode()
    elif isinstance(image, list):
        for frame in image:
            yield from _picture_identity(frame)
    elif image is not None:  # a PIL image
        yield f"{image.mode}:{image.size}:".encode() + hashlib.sha256(image.tobytes()).digest()


def _load(folder: Path) -> dict[str, Tensor]:
    about = json.loads((folder / "entry.json").read_text())
    arrays = {}
    for name, size in about["sizes"].items():
        path = folder / f"{name}.npy"
        if path.stat().st_size != size:
            raise BadData(f"the cached features in {folder} were damaged; delete that folder and run again")
        # copy-on-write, so that a tensor may be made of it: what a caller writes never reaches the file
        arrays[name] = torch.from_numpy(np.load(path, mmap_mode="c"))
    return arrays
