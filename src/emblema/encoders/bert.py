"""BERT's text encoder: bidirectional, norms after each residual, pooled at [CLS] or by the mean of the words.

With six layers, width 384 and mean pooling it holds MiniLM exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emblema.core.tokens import Tokens
from emblema.encoders.block import LayerNorm, blocks
from emblema.encoders.text import TextTower


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Shape of a BERT encoder. Defaults are BERT base, uncased."""

    kind: str = "bert"
    vocab_size: int = 30522
    context_length: int = 512
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    eps: float = 1e-12
    pool: str = "cls"  # "cls" (ALIGN, ZeroVL) or "mean" over the words (OTTER, MiniLM)
    token_types: int = 2
    project: bool = True  # False: the width is the joint space
    projection_bias: bool = False
    hidden: int | None = None  # of a projection with a GELU between two linear maps; None: one linear map

    def build(self, dim: int) -> Bert:
        return Bert(self, dim)


class Bert(TextTower):
    """A BERT encoder as a text tower. Prompts join the word embeddings, positions come after them."""

    causal = False
    pad_to_context = False

    def __init__(self, config: BertConfig, dim: int):
        super().__init__()
        if config.pool not in ("cls", "mean"):
            raise ValueError(f'pool={config.pool!r}: BERT is pooled at "cls" or by "mean"')
        if not config.project and config.width != dim:
            raise ValueError(f"without a projection the width {config.width} must be the joint dim, not {dim}")
        self.config, self.width, self.depth, self.dim = config, config.width, config.depth, dim
        self.context_length, self.pool_kind = config.context_length, config.pool
        self.words = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Parameter(torch.empty(config.context_length, config.width))
        self.token_types = nn.Parameter(torch.empty(config.token_types, config.width))
        self.norm_embedded = LayerNorm(config.width, eps=config.eps)
        self.blocks = blocks(config, post_norm=True)
        self.norm = nn.Identity()  # each block ends with its own
        self.projection = _projection(config, dim) if config.project else None
        self._initialise()

    def _initialise(self) -> None:
        """Normal with standard deviation 0.02, as BERT's authors; biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.positions, std=0.02)
        nn.init.normal_(self.token_types, std=0.02)

    def enter(self, tokens: Tokens) -> Tokens:
        """Positions, the type of a first sentence, and the norm of the sum."""
        tokens = self.fit(tokens)
        x = tokens.x + (self.positions[: tokens.x.shape[1]] + self.token_types[0]).to(tokens.x.dtype)
        return tokens.with_x(self.norm_embedded(x))

    def project(self, x: Tensor) -> Tensor:
        return x if self.projection is None else self.projection(x)


def _projection(config: BertConfig, dim: int) -> nn.Module:
    """[..., width] -> [..., dim]"""
    if config.hidden is None:
        return nn.Linear(config.width, dim, bias=config.projection_bias)
    first, last = (
        nn.Linear(a, b, bias=config.projection_bias) for a, b in ((config.width, config.hidden), (config.hidden, dim))
    )
    return nn.Sequential(first, nn.GELU(), last)
