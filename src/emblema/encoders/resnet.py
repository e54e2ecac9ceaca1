"""Stub: the tower follows."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    kind: str = "resnet"

    def build(self, dim: int):
        raise NotImplementedError
