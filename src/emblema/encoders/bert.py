"""Stub: the tower follows."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    kind: str = "bert"

    def build(self, dim: int):
        raise NotImplementedError
