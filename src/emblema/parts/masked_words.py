"""Masked language modelling on any text tower: hide words of its input, predict them from its output."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.tokens import Tokens
from emblema.encoders.text import TextTower
from emblema.encoders.tokenizers import TextIds
from emblema.objectives.generative import IGNORE
from emblema.parts.masking import mask_tokens

HIDDEN = -1  # stands for the mask vector among ids


class MaskedWords(nn.Module):
    """A mask vector and a vocabulary head.

    The mask is a vector of its own and not a word of the tokenizer, so any tokenizer will do.
    """

    def __init__(self, width: int, vocabulary: int):
        super().__init__()
        self.mask = nn.Parameter(torch.randn(width) * 0.02)
        self.head = nn.Linear(width, vocabulary)

    def hide(self, text: TextTower, ids: TextIds, noise: Tensor, ratio: float = 0.15) -> tuple[Tokens, Tensor]:
        """Embedded tokens with some hidden, and targets [B, L]: the id where selected, -100 elsewhere.

        The first and the last token of a text (start and end) are never selected. A text whose words all escape has
        no target. `noise` is uniform, [B, 3, L or more].
        """
        ids = ids.to(text.words.weight.device)
        steps = torch.arange(ids.ids.shape[1], device=ids.ids.device)
        special = (steps == 0) | (steps >= ids.length[:, None] - 1)  # [B, L]
        assert text.tokenizer is not None
        corrupted, targets = mask_tokens(ids.ids, special, HIDDEN, text.tokenizer.vocab_size, noise, ratio=ratio)
        hidden = corrupted == HIDDEN
        tokens = text.embed(TextIds(corrupted.masked_fill(hidden, 0), ids.length))
        return tokens.where(hidden, self.mask), targets

    def losses(self, h: Tensor, targets: Tensor) -> Tensor:
        """Outputs of the tower [B, L, width] -> [B, 2]: summed cross-entropy and number of targets of each text.

        A row a sample, so that gradients can be cached; the loss is the first column's sum over the second's.
        """
        chosen = targets != IGNORE  # [B, L]
        row = chosen.nonzero()[:, 0]  # [T]
        each = F.cross_entropy(self.head(h[chosen]).float(), targets[chosen], reduction="none")  # [T]
        count = chosen.sum(1).to(each.dtype)
        return torch.stack([torch.zeros_like(count).index_add(0, row, each), count], 1)
