"""Stub: the tower follows."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    kind: str = "backbone"

    def build(self, dim: int):
        raise NotImplementedError
