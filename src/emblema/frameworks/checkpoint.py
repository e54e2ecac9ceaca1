"""A model is a folder: shape, weights, tokenizer, preprocessing, templates and a card, and nothing is guessed.

    config.json  model.safetensors  tokenizer.json  preprocess.json  templates.json  README.md

Loading says what share of the model's tensors the file filled, and fails below all of them unless asked not to.
Weights may be kept as fp32, as fp16, or as int8 with one scale a row (a quarter of the size; each weight is
within half a step, 1/254 of the largest of its row). No pickle is ever read.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emblema.core.errors import BadCheckpoint
from emblema.core.preprocess import Preprocess
from emblema.encoders.tokenizers import TrainedTokenizer
from emblema.frameworks.captioner import Captioners
from emblema.frameworks.fused import FusedTowers
from emblema.frameworks.grounder import Grounders
from emblema.frameworks.one_tower import OneTower
from emblema.frameworks.two_leg import TwoLegs
from emblema.frameworks.two_tower import TwoTower
from emblema.frameworks.vlm import VLM, frozen

FORMAT, VERSION = "emblema", 1
CONFIG, WEIGHTS, PREPROCESS, TEMPLATES, CARD = (
    "config.json",
    "model.safetensors",
    "preprocess.json",
    "templates.json",
    "README.md",
)
FRAMEWORKS = {c.framework: c for c in (TwoTower, OneTower, TwoLegs, FusedTowers, Captioners, Grounders)}
SCALE = "::scale"  # suffix of the scales of an int8 tensor
CANARY = "It's 2 cats, a CAFÉ & naïve_words -- ok?"  # its ids are stored: a wrong tokenizer shows at load

Config = TwoTower | OneTower | TwoLegs | FusedTowers | Captioners | Grounders
Templates = list[str] | dict[str, list[str]]


@dataclass(frozen=True)
class LoadReport:
    """Which tensors of a model came from its file."""

    source: str
    loaded: int
    expected: int
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Loaded tensors over the model's tensors."""
        return self.loaded / self.expected

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        parts = [f"{self.source}: {self.loaded} of {self.expected} tensors loaded ({self.share:.1%})"]
        for kind in ("missing", "unexpected", "mismatched"):
            names = getattr(self, kind)
            if names:
                more = f" and {len(names) - 8} more" if len(names) > 8 else ""
                parts.append(f"{kind}: {', '.join(names[:8])}{more}")
        return "; ".join(parts)


@dataclass(frozen=True)
class Loaded:
    """A frozen model with all that it needs to be used as its makers meant it."""

    vlm: VLM
    config: Config
    preprocess: Preprocess
    templates: Templates
    report: LoadReport


def save(
    folder: str | Path,
    vlm: VLM,
    config: Config,
    preprocess: Preprocess,
    templates: Templates,
    card_text: str | None = None,
    weights: str = "fp32",
) -> Path:
    """Write a checkpoint folder; an existing one is replaced only when the new one is whole."""
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG).exists():
        raise BadCheckpoint(f"{folder} holds other files and no {CONFIG}; choose an empty or a new folder")
    tensors = unique_tensors(vlm)
    _check_shape(tensors, config)
    stored = {name: part for key, value in tensors.items() for name, part in _pack(key, value, weights).items()}
    tokenizer = getattr(vlm.text, "tokenizer", None)
    part = folder.parent / f".{folder.name}.{os.getpid()}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        from safetensors.torch import save_file

        save_file(stored, part / WEIGHTS, metadata={"format": "pt"})  # of several entries, the order would be random
        described: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "framework": config.framework,
            "weights": weights,
            "model": config.to_json(),
            "tokenizer": None,
        }
        if tokenizer is not None:
            described["tokenizer"] = tokenizer.save(part)
            described["canary"] = tokenizer([CANARY], 4096).ids[0].tolist()
        _write_json(part / CONFIG, described)
        _write_json(part / PREPROCESS, preprocess.to_json())
        _write_json(part / TEMPLATES, templates)
        (part / CARD).write_text(card_text or _card(folder.name, vlm, config), encoding="utf-8")
        _replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def load(folder: str | Path, *, strict: bool = True) -> Loaded:
    """Read a checkpoint folder. The model comes back frozen, in evaluation mode and in fp32."""
    folder = Path(folder)
    if not folder.is_dir():
        raise BadCheckpoint(f"no checkpoint folder {folder}")
    described = read_json(folder / CONFIG)
    if described.get("format") != FORMAT:
        raise BadCheckpoint(
            f"{folder / CONFIG} is not a configuration of emblema (format {described.get('format')!r}). "
            "Folders of open_clip and Hugging Face are read by emblema.frameworks.pretrained.load_pretrained"
        )
    if described.get("version") != VERSION:
        raise BadCheckpoint(f"{folder / CONFIG} has version {described.get('version')!r}, this package reads {VERSION}")
    if described.get("framework") not in FRAMEWORKS:
        known = ", ".join(FRAMEWORKS)
        raise BadCheckpoint(f"{CONFIG}: framework {described.get('framework')!r} is unknown, expected one of {known}")
    config = _as_checkpoint(CONFIG, FRAMEWORKS[described["framework"]].from_json, described.get("model") or {})
    preprocess = _as_checkpoint(PREPROCESS, Preprocess.from_json, read_json(folder / PREPROCESS))
    templates = read_json(folder / TEMPLATES, of=(list, dict))
    tensors = unpack(read_tensors(folder / WEIGHTS))
    vlm = _as_checkpoint(CONFIG, build, config)
    report = fill(vlm, tensors, str(folder), strict=strict)
    if described.get("tokenizer") is not None:
        attach_tokenizer(vlm, TrainedTokenizer.load(folder, described["tokenizer"]), described.get("canary"))
    return Loaded(frozen(vlm), config, preprocess, templates, report)


def build(config: Config) -> VLM:
    """A model whose weights are about to be loaded; nobody's random numbers are used up."""
    with torch.random.fork_rng(devices=[]):
        return config.build()


def attach_tokenizer(vlm: VLM, tokenizer: TrainedTokenizer, canary: list[int] | None = None) -> None:
    """Give the text tower its tokenizer, if the two fit."""
    words = getattr(vlm.text, "words", None)
    if words is not None and tokenizer.vocab_size > words.num_embeddings:
        raise BadCheckpoint(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the text tower {words.num_embeddings}: "
            "tokenizer.json belongs to another model"
        )
    if canary is not None and tokenizer([CANARY], 4096).ids[0].tolist() != canary:
        raise BadCheckpoint(
            "the tokenizer gives other ids than when the model was saved: tokenizer.json or its settings in "
            f"{CONFIG} were changed"
        )
    vlm.text.tokenizer = tokenizer  # type: ignore[assignment]


def unique_tensors(vlm: VLM) -> dict[str, Tensor]:
    """Name -> tensor of a model, shared ones once, under their first name."""
    seen: set[int] = set()
    found: dict[str, Tensor] = {}
    for name, value in vlm.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            found[name] = value
    return found


@torch.no_grad()
def fill(
    vlm: VLM,
    tensors: Mapping[str, Tensor],
    source: str,
    *,
    strict: bool = True,
    missing: Mapping[str, str] | None = None,
    unexpected: list[str] | None = None,
) -> LoadReport:
    """Copy tensors into a model by name. Importers pass what was missing and unexpected under its foreign name."""
    ours = unique_tensors(vlm)
    foreign = missing or {}
    absent = [foreign.get(n, n) for n in ours if n not in tensors]
    extra = [n for n in tensors if n not in ours] + list(unexpected or [])
    fits = {
        n: ours[n].shape == t.shape and ours[n].is_floating_point() == t.is_floating_point()
        for n, t in tensors.items()
        if n in ours
    }
    wrong = [
        f"{n} {list(tensors[n].shape)} {tensors[n].dtype} for {list(ours[n].shape)} {ours[n].dtype}"
        for n, fit in fits.items()
        if not fit
    ]
    report = LoadReport(source, sum(fits.values()), len(ours), absent, extra, wrong)
    if strict and not report.complete:
        raise BadCheckpoint(f"{report}. Use the checkpoint of this very model, or strict=False to load what fits")
    for name, fit in fits.items():
        if fit:
            ours[name].copy_(tensors[name])
    return report


# -- files ---------------------------------------------------------------------------------------------------


def read_json(path: Path, of: tuple[type, ...] = (dict,)) -> Any:
    """A JSON file of a checkpoint."""
    if not path.exists():
        raise BadCheckpoint(f"{path.name} is missing in {path.parent}: copy the whole checkpoint folder")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BadCheckpoint(f"{path} is not readable JSON ({error}): copy it again") from error
    if not isinstance(data, of):
        raise BadCheckpoint(f"{path} holds a {type(data).__name__}, expected {' or '.join(t.__name__ for t in of)}")
    return data


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        raise BadCheckpoint(f"{path.name} is missing in {path.parent}: copy the whole checkpoint folder")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise BadCheckpoint(
            f"{path} is not a whole safetensors file of {path.stat().st_size:,} bytes ({error}): copy it again"
        ) from error


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _replace(part: Path, folder: Path) -> None:
    """Rename; an old folder steps aside first and is deleted last."""
    if not folder.exists():
        part.rename(folder)
        return
    old = folder.parent / f".{folder.name}.{os.getpid()}.old"
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    try:
        part.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _as_checkpoint(name: str, make: Any, data: Any) -> Any:
    """Whatever a file's content makes impossible is reported as the file's fault."""
    try:
        return make(data)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise BadCheckpoint(f"{name} does not describe a model: {error}") from error


def _check_shape(tensors: Mapping[str, Tensor], config: Config) -> None:
    fresh = {n: tuple(t.shape) for n, t in unique_tensors(build(config)).items()}
    ours = {n: tuple(t.shape) for n, t in tensors.items()}
    wrong = sorted(n for n in {*fresh, *ours} if fresh.get(n) != ours.get(n))
    if wrong:
        name = wrong[0]
        raise BadCheckpoint(
            f"the configuration does not describe this model: {name} is {ours.get(name)} in the model and "
            f"{fresh.get(name)} in the configuration ({len(wrong)} tensors differ)"
        )


def _card(name: str, vlm: VLM, config: Config) -> str:
    count = sum(t.numel() for t in unique_tensors(vlm).values())
    return (
        f"# {name}\n\nA {config.framework} vision-language model, {count:,} parameters, written by emblema.\n\n"
        f'```python\nimport emblema\n\nmodel = emblema.load("{name}")\n```\n'
    )


# -- weights -------------------------------------------------------------------------------------------------


def _pack(name: str, value: Tensor, weights: str) -> dict[str, Tensor]:
    value = value.detach().cpu().contiguous()
    if not value.is_floating_point():
        return {name: value.clone()}
    value = value.float()
    if weights == "fp32" or value.dim() < 2:
        return {name: value.clone()}
    if weights == "fp16":
        if value.abs().max() > torch.finfo(torch.float16).max:
            raise ValueError(f"{name} does not fit fp16; save with weights='fp32'")
        return {name: value.half()}
    if weights == "int8":
        rows = value.flatten(1)  # [R, C]
        scale = rows.abs().amax(1) / 127  # [R]
        steps = (rows / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round().clamp(-127, 127)
        return {name: steps.to(torch.int8).view(value.shape), name + SCALE: scale}
    raise ValueError(f"weights={weights!r}: choose 'fp32', 'fp16' or 'int8'")


def unpack(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stored tensors as fp32 (integers that are no weights stay)."""
    found = {}
    for name, value in stored.items():
        if name.endswith(SCALE):
            if name.removesuffix(SCALE) not in stored:
                raise BadCheckpoint(f"{name} has no tensor that it scales")
        elif name + SCALE in stored:
            scale = stored[name + SCALE]
            if value.dtype != torch.int8 or scale.shape != value.shape[:1]:
                raise BadCheckpoint(f"{name}: int8 rows and one scale a row expected, got {value.dtype}")
            found[name] = value.float() * scale.float().view(-1, *[1] * (value.dim() - 1))
        else:
            found[name] = value.float() if value.is_floating_point() else value
    return found
