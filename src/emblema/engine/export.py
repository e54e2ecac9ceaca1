"""A fitted system as files that need nothing of the place where it was fitted.

`save` writes a folder of safetensors: what was learnt, and the model it was learnt on. `to_onnx` writes one graph from
pixels to logits and measures it against the original on the same pictures. A file that differs is not left behind.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emblema.core.batch import Batch, ImageInput, Level
from emblema.core.errors import BadCheckpoint, BadData, EmblemaError
from emblema.engine.encode import features_at
from emblema.engine.features import weights_id
from emblema.engine.inputs import COMPUTED, STAGES
from emblema.frameworks import checkpoint
from emblema.frameworks.pretrained import load_pretrained
from emblema.frameworks.vlm import VLM
from emblema.parts.prompts import PromptedText

TOLERANCE = 1e-3  # largest difference of logits, in shares of the largest logit


class CannotExport(EmblemaError):
    """The computation could not be written as a graph, or the graph computes something else."""


class Whole(nn.Module):
    """uint8 pixels [B, 3, S, S] -> logits [B, C]: the image tower and a fitted system's answer in one module."""

    def __init__(self, fitted: Any):
        super().__init__()
        self.vlm: VLM = fitted._model.vlm
        self.head = said_once(fitted.module_, self.vlm)
        self._fitted = fitted
        level = Level(fitted.card.reads)
        more = [n for n in fitted.card.needs if n == "pixels" or n in COMPUTED]
        self._stages = list(dict.fromkeys([*STAGES[level], *more]))
        self._level = level

    def forward(self, pixels: Tensor) -> Tensor:
        x = ImageInput(reads=self._level, reader=self._fitted.card.name, **self._inputs(pixels))
        batch = Batch(keys=[], x=x, targets={"index": torch.arange(pixels.shape[0])})
        logits = self._fitted.logits(self.head, batch).float()
        columns = vars(self._fitted).get("_columns")
        return logits if columns is None else logits[:, columns]

    def _inputs(self, pixels: Tensor) -> dict[str, Any]:
        tower, found = self.vlm.image, {}
        for name in self._stages:
            if name == "pixels":
                found["pixels"] = pixels
            elif name == "tokens":
                found["tokens"] = tower.embed(pixels)
            else:
                found |= features_at(tower, pixels, COMPUTED[name])
        return found


class Said(nn.Module):
    """Learnt words that no longer change: their class vectors are numbers now, the text tower is not asked again."""

    classes: Tensor
    before: Tensor

    def __init__(self, prompt: PromptedText):
        super().__init__()
        self.register_buffer("classes", prompt().detach())
        self.register_buffer("before", prompt.raw().detach())

    def forward(self) -> Tensor:
        return self.classes

    def raw(self) -> Tensor:
        return self.before

    def __getattr__(self, name: str) -> Any:
        if name in ("context", "tokens", "of_images", "names"):
            raise CannotExport("its words enter the text tower's layers, or change with the picture")
        return super().__getattr__(name)


def said_once(head: nn.Module, vlm: VLM) -> nn.Module:
    """A copy of a fitted module, around the same VLM, whose `PromptedText` are `Said`."""
    head = copy.deepcopy(head, {id(vlm): vlm})
    for name, part in list(head.named_modules()):
        if isinstance(part, PromptedText) and name and part.context is not None:
            head.set_submodule(name, Said(part))
    return head


class ZeroShot(nn.Module):
    """uint8 pixels [B, 3, S, S] -> logits [B, C] against class vectors [C, D]."""

    classes: Tensor

    def __init__(self, vlm: VLM, classes: Tensor):
        super().__init__()
        self.vlm = vlm
        self.register_buffer("classes", classes)

    def forward(self, pixels: Tensor) -> Tensor:
        z = features_at(self.vlm.image, pixels, "joint")["pooled"]  # [B, D]
        return self.vlm.logits(z, self.classes)


def save(fitted: Any, folder: Path | str, source: str) -> Path:
    """Write `folder`: config.json, learnt.safetensors and `model/`, the checkpoint of the VLM, read from `source`.

    `Transfer.load(folder)` and `--model FOLDER` take it anywhere. Raises `BadCheckpoint` when `source` (a name or a
    folder) does not hold the weights that the system was fitted on.
    """
    folder, loaded = Path(folder), load_pretrained(source)
    if weights_id(loaded.vlm) != weights_id(fitted._model.vlm):
        raise BadCheckpoint(f"{source} has other weights than the model that the system was fitted on: give that one")
    fitted.save(folder)
    checkpoint.save(folder / "model", loaded.vlm, loaded.config, loaded.preprocess, loaded.templates)
    return folder


@dataclass(frozen=True)
class Parity:
    """How far the graph is from the original on the same pictures."""

    pictures: int
    largest: float  # difference of logits
    scale: float  # largest logit
    same_class: float  # share of pictures that both name alike

    @property
    def ok(self) -> bool:
        return self.largest <= TOLERANCE * max(self.scale, 1.0)


def to_onnx(
    module: nn.Module, path: Path | str, size: int, class_names: Sequence[str], preprocess: dict[str, Any],
    count: int = 8,
) -> Parity:  # fmt: skip
    """Write `module`, from "pixels" (uint8 [batch, 3, size, size]) to "logits" [batch, C], and a .json beside it.

    Raises `CannotExport` when the computation cannot be traced or the graph's logits differ by more than a thousandth
    of the largest on `count` random pictures, and `BadData` without the extra `export`.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch writes the graph with it
    except ImportError as error:
        raise BadData(f"ONNX needs {error.name}: pip install 'emblema[export]'") from None
    path, module = Path(path), module.eval()
    dice = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=dice)
    part = path.with_suffix(".part.onnx")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            graph = torch.export.export(module, (pixels[:3],), dynamic_shapes=({0: torch.export.Dim("batch")},))
            torch.onnx.export(
                graph, (), part, dynamo=True, input_names=["pixels"], output_names=["logits"], external_data=False,
                optimize=False, verbose=False,  # runtimes do so themselves, faster
            )  # fmt: skip
        session = onnxruntime.InferenceSession(part, providers=["CPUExecutionProvider"])
        found = parity(module, lambda x: torch.from_numpy(session.run(None, {"pixels": x.numpy()})[0]), pixels)
        if not found.ok:
            raise CannotExport(
                f"the graph's logits differ by up to {found.largest:.2e} (largest logit {found.scale:.1f})"
            )
    except Exception as error:  # whatever the tracer or the runtime stumbles over
        part.unlink(missing_ok=True)
        why = " ".join(str(error).split("\n\n")[0].split())[:200]
        raise CannotExport(f"no ONNX graph was written: {why}. Its safetensors do not need one") from error
    part.replace(path)
    said = {
        "input": "pixels: uint8 [batch, 3, height, width], RGB, not normalised",
        "output": "logits: [batch, classes]",
    }
    said |= {"class_names": list(class_names), "preprocess": preprocess, "parity": vars(found)}
    path.with_suffix(".json").write_text(json.dumps(said, indent=1, ensure_ascii=False), encoding="utf-8")
    return found


@torch.no_grad()
def parity(module: nn.Module, graph: Any, pixels: Tensor) -> Parity:
    """Compare on batches of one and of all others: the batch size must be free."""
    ours = torch.cat([module(pixels[:1]), module(pixels[1:])])
    theirs = torch.cat([graph(pixels[:1]), graph(pixels[1:])])
    if ours.shape != theirs.shape or not theirs.isfinite().all():
        return Parity(len(pixels), float("inf"), float(ours.abs().max()), 0.0)
    largest, scale = float((ours - theirs).abs().max()), float(ours.abs().max())
    return Parity(len(pixels), largest, scale, float((ours.argmax(1) == theirs.argmax(1)).float().mean()))
