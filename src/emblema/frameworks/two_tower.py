"""Two towers that meet only in the loss (CLIP, ALIGN, DeCLIP, ...), described by a configuration that is all of it.

The configuration travels with a checkpoint as JSON; `kind` says which tower a part of it describes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

from emblema.core.errors import BadCheckpoint, UnknownName
from emblema.encoders.backbone import BackboneConfig
from emblema.encoders.bert import BertConfig
from emblema.encoders.groupvit import GroupViTConfig
from emblema.encoders.resnet import ResNetConfig
from emblema.encoders.text import TextConfig
from emblema.encoders.vit import ViTConfig
from emblema.frameworks.vlm import VLM
from emblema.objectives.logit_scale import LogitScale

KINDS = {c.kind: c for c in (ViTConfig, GroupViTConfig, ResNetConfig, BackboneConfig, TextConfig, BertConfig)}


@dataclass(frozen=True, kw_only=True)
class TwoTower:
    """Shape of a two-tower model."""

    framework: ClassVar[str] = "two-tower"
    image: ViTConfig | ResNetConfig | BackboneConfig = field(default_factory=ViTConfig)
    text: TextConfig | BertConfig = field(default_factory=TextConfig)
    dim: int = 512
    scale: str = "clip"  # a preset of LogitScale
    logit_bias: float | None = None

    def build(self) -> VLM:
        """A model with fresh weights. The text tower has no tokenizer yet."""
        scale = LogitScale.preset(self.scale)
        return VLM(self.image.build(self.dim), self.text.build(self.dim), scale, self.logit_bias)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TwoTower:
        """Unknown keys and kinds are errors that name them."""
        parts = {k: part(k, v) if isinstance(v, dict) else v for k, v in data.items()}
        return cls(**known(cls, parts, "model"))


def part(name: str, data: dict[str, Any]) -> Any:
    """A part of a model from its JSON."""
    kind = data.get("kind")
    if kind not in KINDS:
        raise BadCheckpoint(f"config.json: {name} has kind {kind!r}, expected one of {', '.join(KINDS)}")
    lists = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return KINDS[kind](**known(KINDS[kind], lists, name))


def known(cls: type, data: dict[str, Any], where: str) -> dict[str, Any]:
    """The data again, if all its keys are fields of the class."""
    unknown = set(data) - {f.name for f in fields(cls)}
    if unknown:
        raise BadCheckpoint(f"config.json: {where} has unknown settings {sorted(unknown)}")
    return data


ARCHITECTURES: dict[str, TwoTower] = {
    # 64 px, for tests and for first tries on a laptop
    "tiny": TwoTower(
        image=ViTConfig(image_size=32, patch_size=8, width=64, depth=2, heads=2),
        text=TextConfig(vocab_size=4096, context_length=32, width=64, depth=2, heads=2),
        dim=32,
    ),
    # protocol P of the pre-training comparisons
    "small": TwoTower(
        image=ViTConfig(image_size=64, patch_size=8, width=192, depth=6, heads=3, stem="conv"),
        text=TextConfig(vocab_size=8192, context_length=32, width=192, depth=4, heads=3),
        dim=128,
    ),
    # learns enough in five minutes on two cores to be looked at
    "demo": TwoTower(
        image=ResNetConfig(layers=(1, 1, 1, 1), width=16, heads=8, image_size=64),
        text=TextConfig(vocab_size=8192, context_length=32, width=128, depth=2, heads=2),
        dim=128,
    ),
    "vit-s-16-112": TwoTower(
        image=ViTConfig(image_size=112, patch_size=16, width=384, depth=12, heads=6),
        text=TextConfig(),
        dim=512,
    ),
    "vit-b-32": TwoTower(),
    "vit-b-16": TwoTower(image=ViTConfig(patch_size=16)),
    "vit-l-14": TwoTower(
        image=ViTConfig(patch_size=14, width=1024, depth=24, heads=16),
        text=TextConfig(width=768, heads=12),
        dim=768,
    ),
    "rn50": TwoTower(image=ResNetConfig(), dim=1024),
}


def architecture(name: str) -> TwoTower:
    """A named shape."""
    if name not in ARCHITECTURES:
        raise UnknownName("architecture", name, list(ARCHITECTURES))
    return ARCHITECTURES[name]
