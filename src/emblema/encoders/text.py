"""CLIP's text transformer, and the exact short cuts that make it cheap.

Captions are shorter than the context, and a causal tower never looks ahead. So (a) the context is cut after
the longest text, (b) rows are packed end to end, padding costs nothing outside the attention product, (c) a
prefix that all rows share ([SOS] and common first words, or a common prompt) is computed once, (d) the last
layer is computed at the pooled position only. All equal the full context to round-off, gradients included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from emblema.core.errors import PromptTooLong
from emblema.core.tokens import Edit, Tokens
from emblema.encoders.block import Attention, Block, LayerNorm, attend, blocks
from emblema.encoders.tokenizers import TextIds, Tokenizer
from emblema.encoders.tower import Transformer


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Shape of a text transformer. Defaults are CLIP's."""

    kind: str = "text"
    vocab_size: int = 49408
    context_length: int = 77
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp_ratio: float = 4.0
    activation: str = "gelu"  # OpenAI's weights: "quick_gelu"
    eps: float = 1e-5
    causal: bool = True
    pool: str = (
        "eot"  # "eot", "last" (SigLIP: the last position, padding included), "mean", or "token" (CoCa: a learned
    )
    # token behind the text, which no word reads)
    pad_to_context: bool = False  # SigLIP was trained on texts padded to the full context
    project: bool = True
    projection_bias: bool = False

    def build(self, dim: int) -> TextTransformer:
        return TextTransformer(self, dim)


class TextTower(Transformer):
    """What text towers share: words in, tokens out, and packed encoding."""

    context_length: int
    causal: bool
    pad_to_context: bool
    words: nn.Embedding
    tokenizer: Tokenizer | None = None

    def tokenize(self, texts: Sequence[str]) -> TextIds:
        """Texts -> ids [N, L] and lengths [N]; L is the longest text, or the context where the tower asks."""
        if self.tokenizer is None:
            raise ValueError("this text tower has no tokenizer: load a checkpoint folder, or set tower.tokenizer")
        room = self.context_length - (self.pool_kind == "token")
        return self.tokenizer(texts, room, pad_to_context=self.pad_to_context)

    def embed(self, raw: Sequence[str] | TextIds) -> Tokens:
        """Texts -> word embeddings (no positions yet: `enter` adds them)."""
        if isinstance(raw, str):
            raise TypeError("texts must be a list of strings, got one string; write [text]")
        ids = (raw if isinstance(raw, TextIds) else self.tokenize(raw)).to(self.words.weight.device)
        if self.pad_to_context and ids.ids.shape[1] != self.context_length:
            raise ValueError(
                f"this text tower was trained on texts padded to {self.context_length} positions, got ids of "
                f"shape {tuple(ids.ids.shape)}; tokenize with pad_to_context=True"
            )
        at = torch.full_like(ids.length, ids.ids.shape[1]) if self.pool_kind == "last" else ids.length
        pool_at = torch.zeros_like(at) if self.pool_kind == "cls" else at - 1
        shared = int((ids.ids == ids.ids[:1]).all(0).int().cumprod(0).sum()) if self.causal and len(ids) else 0
        return Tokens(self.words(ids.ids), pool_at, length=ids.length, shared=shared)

    def fit(self, tokens: Tokens) -> Tokens:
        """Tokens within the context: padding that prompts pushed over its end is dropped, words never are."""
        size = tokens.x.shape[1]
        if size <= self.context_length:
            return tokens
        longest = size if tokens.length is None else int(tokens.length.max())
        if longest > self.context_length:
            raise PromptTooLong(longest, self.context_length)
        return cut(tokens, self.context_length if self.pad_to_context else longest)

    def mask(self, tokens: Tokens) -> Tensor | None:
        size = tokens.x.shape[1]
        mask = None
        if self.causal:
            mask = torch.ones(size, size, dtype=torch.bool, device=tokens.x.device).tril()
        elif tokens.length is not None and not self.pad_to_context:
            mask = tokens.real()[:, None, None]  # [B, 1, 1, L]
        if tokens.visible is not None:
            mask = tokens.visible if mask is None else mask & tokens.visible
        return mask

    def encode(self, raw: Sequence[str] | TextIds | Tokens, edit: Edit | None = None) -> Tensor:
        tokens = raw if isinstance(raw, Tokens) else self.embed(raw)
        if edit is not None or tokens.visible is not None or tokens.length is None or self.pad_to_context:
            return super().encode(tokens, edit)
        if not len(tokens):
            return self.project(tokens.x.new_zeros(0, self.width))
        return self.project(self._pool_packed(self.enter(cut(tokens, int(tokens.length.max())))))

    def _pool_packed(self, tokens: Tokens) -> Tensor:
        """Packed rows through all layers -> [N, width]."""
        blocks: list[Block] = list(self.blocks)  # type: ignore[arg-type]
        packed = Packed(tokens, self.causal, blocks[0].attention.heads)
        x = packed.pack(tokens.x)  # [P + T, D]
        early = self.pool_kind != "mean"  # the last layer is needed at the pooled position only
        for block in blocks[:-1] if early else blocks:
            x = packed.block(block, x)
        if early:
            return self.norm(packed.block(blocks[-1], x, pooled=True))  # [N, D]
        return packed.mean(self.norm(x))


def cut(tokens: Tokens, size: int) -> Tokens:
    """The first `size` positions; what is pooled moves inside."""
    visible = None if tokens.visible is None else tokens.visible[:size, :size]
    pool_at = tokens.pool_at.clamp(max=size - 1)
    return replace(tokens, x=tokens.x[:, :size], pool_at=pool_at, visible=visible, shared=min(tokens.shared, size))


class Packed:
    """Rows of different lengths end to end: [P shared positions; all other real positions, the shorter rows first].

    What acts on one position alone sees this matrix, without padding. Attention takes rows of about one length
    together, so there is little padding there either; the shared positions are a row of their own before them.
    """

    def __init__(self, tokens: Tokens, causal: bool, heads: int):
        assert tokens.length is not None
        rows, full = tokens.x.shape[:2]
        # each row keeps a token of its own, so that there is always something to pool
        alike = min(tokens.shared, int(tokens.length.min()) - 1, int(tokens.pool_at.min()))
        self.prefix = prefix = alike if causal and rows > 1 else 0
        own, order = (tokens.length - prefix).sort(stable=True)  # [N] positions of each row behind the prefix
        start = prefix + own.cumsum(0) - own  # [N] where they begin in the packed matrix
        pool_at = tokens.pool_at[order] - prefix

        level = [max(n - 1, 15).bit_length() for n in own.tolist()]  # up to 16, 32, 64, ... positions
        cuts = [0, *(i for i in range(1, rows) if level[i] > level[i - 1]), rows]
        self.groups = [Group(start[a:b], own[a:b], pool_at[a:b], prefix, causal) for a, b in pairwise(cuts)]
        if prefix:
            whole = torch.full_like(own[:1], prefix)
            self.groups.insert(0, Group(whole * 0, whole, whole - 1, 0, causal))
        cells = [group.cells(heads) for group in self.groups]
        self.cells, self.sizes = torch.cat(cells), [len(c) for c in cells]
        before = accumulate((size // 3 for size in self.sizes), initial=0)
        self.back = torch.cat([group.back(heads) + at for group, at in zip(self.groups, before)])

        self.original = order.argsort()  # [N] the sorted rows in the order in which they came
        self.pooled = (start + pool_at)[self.original]  # [N] into the packed matrix
        self.length = tokens.length
        self.owner = order.repeat_interleave(own)  # [T] the row of each position
        column = torch.arange(len(self.owner), device=own.device) - (start - prefix).repeat_interleave(own)
        shared = order[0] * full + torch.arange(prefix, device=own.device)
        self.real = torch.cat([shared, self.owner * full + prefix + column])  # [P + T] into N * L

    def pack(self, x: Tensor) -> Tensor:
        """[N, L, D] -> [P + T, D]"""
        return x.flatten(0, 1).index_select(0, self.real)

    def block(self, block: Block, x: Tensor, pooled: bool = False) -> Tensor:
        """One transformer block over packed rows [P + T, D]; with `pooled` only what is pooled comes out [N, D]."""
        chosen = x.index_select(0, self.pooled) if pooled else x
        attention = self.attention_pooled if pooled else self.attention
        if block.post_norm:
            chosen = block.norm1(chosen + attention(block.attention, x))
            return block.norm2(chosen + block.mlp(chosen))
        chosen = chosen + attention(block.attention, block.norm1(x))
        return chosen + block.mlp(block.norm2(chosen))

    def attention(self, attention: Attention, x: Tensor) -> Tensor:
        """[P + T, D] -> [P + T, D]"""
        said = [attend(q, k, v, group.mask).flatten(0, 2) for group, q, k, v in self._heads(attention, x)]
        return attention.out(torch.cat(said).index_select(0, self.back).view_as(x))

    def attention_pooled(self, attention: Attention, x: Tensor) -> Tensor:
        """Attention of what is pooled only: [P + T, D] -> [N, D]"""
        said = [
            attend(q[torch.arange(len(q)), :, group.pool_at, None], k, v, group.pool_mask).flatten(1)
            for group, q, k, v in self._heads(attention, x)
        ]
        return attention.out(torch.cat(said[self.prefix > 0 :]).index_select(0, self.original))

    def _heads(self, attention: Attention, x: Tensor) -> Iterator[tuple[Group, Tensor, Tensor, Tensor]]:
        """Each group with its queries [n, heads, S, d], and the keys and values [n, heads, P + S, d] that they read."""
        heads = attention.qkv(x).view(-1, x.shape[-1] // attention.heads)  # [(P + T) * 3 * heads, d]
        prefix = ()
        for group, cells in zip(self.groups, heads.index_select(0, self.cells).split(self.sizes)):
            q, k, v = cells.view(3, group.rows, attention.heads, group.width, -1)
            if prefix:
                k, v = (torch.cat([a.expand(group.rows, -1, -1, -1), b], 2) for a, b in zip(prefix, (k, v)))
            elif self.prefix:
                prefix = k, v
            yield group, q, k, v

    def mean(self, x: Tensor) -> Tensor:
        """Mean over the real positions of each row: [P + T, D] -> [N, D]"""
        own = x.new_zeros(len(self.length), x.shape[-1], dtype=torch.float32)
        total = own.index_add(0, self.owner, x[self.prefix :].float()) + x[: self.prefix].float().sum(0)
        return (total / self.length[:, None]).to(x.dtype)


class Group:
    """Packed rows of about one length, S positions at most, and who reads whom among them."""

    def __init__(self, start: Tensor, own: Tensor, pool_at: Tensor, prefix: int, causal: bool):
        self.start, self.own, self.pool_at = start, own, pool_at  # each [n]
        self.rows, self.width = len(own), int(own[-1])
        self.steps = torch.arange(self.width, device=own.device)
        self.real = self.steps < own[:, None]  # [n, S]
        if causal:  # a query at column i reads the prefix and the columns up to i
            columns = torch.arange(prefix + self.width, device=own.device)
            self.mask = prefix + self.steps[:, None] >= columns  # [S, P + S]
            self.pool_mask = (columns <= prefix + pool_at[:, None])[:, None, None]  # [n, 1, 1, P + S]
        else:
            self.mask = self.pool_mask = self.real[:, None, None]  # [n, 1, 1, S]

    def cells(self, heads: int) -> Tensor:
        """Where q, k and v of each head lie in the packed [q; k; v]: [3 * n * heads * S].

        What pads a row is its last position once more, which no real query may read there.
        """
        at = self.start[:, None] + torch.minimum(self.steps, self.own[:, None] - 1)  # [n, S]
        head = torch.arange(3 * heads, device=at.device).view(3, 1, heads, 1)
        return (at[:, None] * 3 * heads + head).flatten()

    def back(self, heads: int) -> Tensor:
        """Where the heads of each real position lie in what the group's rows say [n, heads, S]: [T * heads]"""
        row, column = self.real.nonzero().T[:, :, None]  # each [T, 1]
        return ((row * heads + torch.arange(heads, device=row.device)) * self.width + column).flatten()


class TextTransformer(TextTower):
    """CLIP's text tower (causal, pooled at [EOT]) and SigLIP's (bidirectional, padded, pooled last)."""

    def __init__(self, config: TextConfig, dim: int):
        super().__init__()
        self.config, self.width, self.depth, self.dim = config, config.width, config.depth, dim
        if config.pool not in ("eot", "last", "mean", "token"):
            raise ValueError(
                f'pool={config.pool!r}: a text transformer is pooled at "eot", "last", "token" or by "mean"'
            )
        if config.pool == "token" and (not config.causal or config.pad_to_context):
            raise ValueError('pool="token" puts a token behind the text that no word may read: it needs a causal tower')
        if config.pool == "last" and not config.pad_to_context:
            raise ValueError('pool="last" reads the last padded position: it needs pad_to_context=True')
        self.context_length, self.causal = config.context_length, config.causal
        self.pool_kind, self.pad_to_context = config.pool, config.pad_to_context
        self.words = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Parameter(torch.empty(config.context_length, config.width))
        self.blocks = blocks(config)
        self.norm = LayerNorm(config.width, eps=config.eps)
        self.projection = nn.Linear(config.width, dim, bias=config.projection_bias) if config.project else None
        if not config.project and config.width != dim:
            raise ValueError(f"without a projection the width {config.width} must be the joint dim, not {dim}")
        self._initialise()
        self.class_token = nn.Parameter(torch.randn(config.width) * 0.01) if config.pool == "token" else None

    def _initialise(self) -> None:
        """Standard deviations of OpenAI's CLIP."""
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        residual = self.width**-0.5 * (2 * self.depth) ** -0.5
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.normal_(block.attention.qkv.weight, std=self.width**-0.5)
            nn.init.normal_(block.attention.out.weight, std=residual)
            nn.init.normal_(block.mlp[0].weight, std=(2 * self.width) ** -0.5)  # type: ignore[arg-type]
            nn.init.normal_(block.mlp[2].weight, std=residual)  # type: ignore[arg-type]
        if self.projection is not None:
            nn.init.normal_(self.projection.weight, std=self.width**-0.5)

    def embed(self, raw: Sequence[str] | TextIds) -> Tokens:
        tokens = super().embed(raw)
        if self.class_token is None or not len(tokens):
            return tokens
        assert tokens.length is not None
        return replace(tokens.insert_each(self.class_token[None], tokens.length), pool_at=tokens.length)

    def enter(self, tokens: Tokens) -> Tokens:
        tokens = self.fit(tokens)
        return tokens.with_x(tokens.x + self.positions[: tokens.x.shape[1]].to(tokens.x.dtype))

    def project(self, x: Tensor) -> Tensor:
        return x if self.projection is None else self.projection(x)
