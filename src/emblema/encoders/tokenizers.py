"""Tokenizers: texts to ids, with the end token always kept and the number of cut texts reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class TextIds:
    """Token ids of a batch of texts."""

    ids: Tensor  # [N, L] long, padded
    length: Tensor  # [N] long, start and end tokens included
    cut: int = 0  # texts that were longer than the context

    def to(self, device: torch.device) -> TextIds:
        return TextIds(self.ids.to(device), self.length.to(device), self.cut)

    def __len__(self) -> int:
        return len(self.ids)


class Tokenizer(Protocol):
    """Cuts a text to the context *before* its end token, so the end token is never lost."""

    vocab_size: int
    pad_id: int

    def __call__(self, texts: Sequence[str], context_length: int, *, pad_to_context: bool = False) -> TextIds: ...
