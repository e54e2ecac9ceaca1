"""What the readers of other libraries' weights share: their own file formats, JSON and safetensors, none of their code.

A setting that is not understood is an error that names it: a model that loads is the model that was saved.
Where a file leaves a setting out, the default is the one that its library documents for the format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emblema.core.errors import BadCheckpoint
from emblema.frameworks.checkpoint import fill, read_json, read_tensors
from emblema.frameworks.vlm import VLM

TEMPLATES = ["a photo of a {}."]  # neither format stores any


class Source:
    """Foreign tensors that are taken one by one; what was not there and what is left over is known."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = dict(tensors)
        self.ours: dict[str, Tensor] = {}
        self.missing: dict[str, str] = {}  # our name -> the foreign one

    def take(self, ours: str, *names: str, by: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        """Our tensor from one foreign tensor, or from several joined along the first axis."""
        found = [self.tensors.get(n) for n in names]
        absent = [n for n, t in zip(names, found) if t is None]
        if absent:
            self.missing[ours] = " + ".join(absent)
            return
        for n in names:
            self.tensors.pop(n)
        joined = torch.cat([t for t in found if t is not None]) if len(found) > 1 else found[0]
        assert joined is not None
        self.ours[ours] = by(joined.float() if joined.is_floating_point() else joined)

    def pair(self, ours: str, name: str) -> None:
        """A weight and its bias."""
        self.take(f"{ours}.weight", f"{name}.weight")
        self.take(f"{ours}.bias", f"{name}.bias")

    def fill(self, vlm: VLM, where: str, strict: bool, ignore: tuple[str, ...]):
        left = [n for n in self.tensors if not n.endswith(ignore)]
        return fill(vlm, self.ours, where, strict=strict, missing=self.missing, unexpected=left)


def read_weights(folder: Path, *names: str) -> dict[str, Tensor]:
    """The first of the named safetensors files, in one piece or in shards."""
    for name in names:
        if (folder / name).exists():
            return read_tensors(folder / name)
        index = folder / f"{name}.index.json"
        if index.exists():
            files = sorted(set(read_json(index)["weight_map"].values()))
            return {n: t for f in files for n, t in read_tensors(folder / f).items()}
    pickles = [p.name for p in folder.glob("*.bin")] + [p.name for p in folder.glob("*.pt")]
    if pickles:
        raise BadCheckpoint(
            f"{folder} has its weights as {', '.join(pickles)}, a pickle, which can run code and is never read. "
            "Save them as safetensors with the library that wrote them"
        )
    raise BadCheckpoint(f"{folder} has no weights: {' or '.join(names)} is missing")


@torch.no_grad()
def take_scale(source: Source, vlm: VLM, where: str) -> None:
    """`logit_scale` (a logarithm in all these formats) and `logit_bias`, where there is one."""
    if vlm.logit_bias is not None:
        source.take("logit_bias", "logit_bias", by=lambda x: x.reshape(()))
    name, state = next(iter(vlm.logit_scale.state_dict(keep_vars=True).items()))
    shape = state.shape
    source.take(f"logit_scale.{name}", "logit_scale", by=lambda x: x.reshape(shape))
    taken = source.ours.get(f"logit_scale.{name}")
    if taken is None:
        return
    state.copy_(taken)
    if not torch.allclose(vlm.scale.float(), taken.exp().reshape(vlm.scale.shape), rtol=1e-4):
        raise BadCheckpoint(
            f"{where}: logit_scale exp({float(taken):.4f}) = {float(taken.exp()):.2f} is beyond the bounds of the "
            f"model's scale ({float(vlm.scale):.2f})"
        )


def known_keys(where: str, data: dict[str, Any], fixed: dict[str, Any], others: set[str]) -> None:
    for key, value in data.items():
        if key in fixed:
            if value != fixed[key] and not (key == "block_type" and value == "default"):
                raise BadCheckpoint(f"{where}.{key} {value!r} is not read, only {fixed[key]!r}")
        elif key not in others:
            raise BadCheckpoint(f"{where}.{key} {value!r} is unknown here, so the model could come out wrong")


def require(name: str, value: Any, expected: Any) -> None:
    if value != expected:
        raise BadCheckpoint(f"{name} is {value!r}, expected {expected!r}: this setting is not read otherwise")


def square(size: Any, name: str) -> int:
    if isinstance(size, dict):
        size = [size.get("height"), size.get("width")]
    if isinstance(size, list | tuple):
        if len(size) != 2 or size[0] != size[1] or size[0] is None:
            raise BadCheckpoint(f"{name} {size!r} is not square")
        size = size[0]
    return int(size)


def numbers(values: Any) -> list[float]:
    return [float(v) for v in values]


def end_tokens(core: Any) -> tuple[int | None, int | None]:
    """The ids that a tokenizer file puts before and after a text: asked, not assumed."""
    core.no_truncation()
    core.no_padding()
    bare, dressed = (core.encode("a", add_special_tokens=s).ids for s in (False, True))
    for i in range(len(dressed) - len(bare) + 1):
        if dressed[i : i + len(bare)] == bare:
            before, after = dressed[:i], dressed[i + len(bare) :]
            if len(before) <= 1 and len(after) <= 1:
                return (before or [None])[0], (after or [None])[0]
    raise BadCheckpoint(f"tokenizer.json dresses a text as {dressed}: at most one start and one end token are read")


def pad_id_of(folder: Path, core: Any, default: int) -> int:
    """The padding token of `tokenizer_config.json`; the model's where that is silent."""
    path = folder / "tokenizer_config.json"
    token = read_json(path).get("pad_token") if path.exists() else None
    token = token.get("content") if isinstance(token, dict) else token
    if token is None:
        return default
    found = core.token_to_id(token)
    if found is None:
        raise BadCheckpoint(f"tokenizer_config.json: pad_token {token!r} is not in the vocabulary")
    return found
