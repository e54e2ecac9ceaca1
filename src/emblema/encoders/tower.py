"""The face of every encoder: embed -> enter -> layers -> pool -> project, with a door before each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from emblema.core.errors import NoSuchDoor
from emblema.core.tokens import Edit, Tokens
from emblema.encoders.block import Block, Change


class Tower(nn.Module):
    """An encoder of images or texts.

    The order is part of the contract. Images: `embed` gives patches + [CLS] + positions, an edit at
    layer 0 sees them, layer 0 then begins with the norm before the encoder (`ln_pre`). Texts: `embed`
    gives word embeddings only, `enter` adds positions, then comes the edit at layer 0.
    """

    width: int
    depth: int
    dim: int

    def embed(self, raw: Any) -> Tokens:
        """Images [B, 3, H, W] (uint8, or float already normalised) or texts -> tokens before layer 0."""
        raise NotImplementedError

    def enter(self, tokens: Tokens) -> Tokens:
        """What happens once before layer 0 and its edit (texts: positions are added)."""
        return tokens

    def layer(self, i: int, tokens: Tokens) -> Tokens:
        """Layer i alone, so that two towers can run in step (deep fusion)."""
        raise NoSuchDoor(f"{type(self).__name__} has no layers to enter; use a transformer tower")

    def transform(self, tokens: Tokens, edit: Edit | None = None) -> Tokens:
        """All layers; `edit(i, tokens)` is called before layer i and returns what enters it."""
        if edit is not None and self.depth == 0:
            raise NoSuchDoor(
                f"{type(self).__name__} has no transformer layers, so prompts and probes cannot enter it. "
                "Choose a model with a ViT image tower."
            )
        tokens = self.enter(tokens)
        for i in range(self.depth):
            tokens = self.layer(i, edit(i, tokens) if edit else tokens)
        return tokens

    def pool(self, tokens: Tokens) -> Tensor:
        """Transformed tokens -> one vector an item [B, width], after the last norm."""
        raise NotImplementedError

    def project(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., dim], the joint space."""
        raise NotImplementedError

    def encode(self, raw: Any, edit: Edit | None = None) -> Tensor:
        """Raw input or its `Tokens` -> [B, dim], not normalised."""
        tokens = raw if isinstance(raw, Tokens) else self.embed(raw)
        return self.finish(self.project(self.pool(self.transform(tokens, edit))), tokens)

    def finish(self, z: Tensor, tokens: Tokens) -> Tensor:
        """The projected vector [B, dim] -> the tower's answer: what went round the layers joins here."""
        return z

    def dense(self, raw: Any, edit: Edit | None = None, values: bool = False) -> Tensor:
        """A feature for each place of the grid [B, H, W, dim], not normalised.

        `values=True` replaces the last attention by its value path.
        """
        raise NoSuchDoor(f"{type(self).__name__} has no dense features")

    def local(self, raw: Any, radius: int = 1) -> Tensor:
        """What the tower pools from each place and its neighbours alone: [B, H, W, dim], not normalised."""
        raise NoSuchDoor(f"{type(self).__name__} has no tokens to pool a neighbourhood of; use its dense features")


class ImageTower(Tower):
    """An encoder of images: knows the size it was trained at and how its pixels are normalised."""

    image_size: int
    mean: Tensor  # [3, 1, 1]
    std: Tensor

    def __init__(self, image_size: int, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.image_size = image_size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> (x / 255 - mean) / std; floats pass unchanged."""
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(
                f"images must be [B, 3, H, W], got {tuple(images.shape)}. Convert grey or RGBA pictures to "
                "RGB, and add a batch axis to a single one."
            )
        if images.dtype != torch.uint8:
            return images
        return torch.addcmul(-self.mean / self.std, images.float(), 1 / (255 * self.std))


class Transformer(Tower):
    """What image and text transformers share: blocks, masks, and the exact short cut at the last layer."""

    blocks: nn.ModuleList
    norm: nn.Module  # after the last layer, over [..., width]
    pool_kind: str  # "cls", "eot", "last", "mean", "map"

    def mask(self, tokens: Tokens) -> Tensor | None:
        """Who may read whom: bool, broadcastable to [B, 1, L, L]; None when all may."""
        return None if tokens.visible is None else tokens.visible

    def layer(self, i: int, tokens: Tokens, change: Change | None = None) -> Tokens:
        """Layer i alone; `change` is applied to what its attention says before that joins the tokens."""
        block: Block = self.blocks[i]  # type: ignore[assignment]
        return tokens.with_x(block(self.before(i, tokens).x, self.mask(tokens), change))

    def before(self, i: int, tokens: Tokens) -> Tokens:
        """The first thing in layer i, after its edit (`ln_pre` of image towers)."""
        return tokens

    def pool(self, tokens: Tokens) -> Tensor:
        if self.pool_kind == "mean":
            return self._mean(tokens)
        return self.norm(tokens.pooled())

    def _mean(self, tokens: Tokens) -> Tensor:
        if tokens.first_patch is not None:  # images: the patches
            patches = tokens.x[:, tokens.first_patch :] if tokens.grid is None else tokens.patches()
            return self.norm(patches).mean(1)
        x = self.norm(tokens.x)
        real = tokens.real()[..., None].to(x.dtype)
        return (x * real).sum(1) / real.sum(1)

    def encode(self, raw: Any, edit: Edit | None = None) -> Tensor:
        tokens = raw if isinstance(raw, Tokens) else self.embed(raw)
        if self.pool_kind not in ("cls", "eot", "last") or self.depth == 0:
            return super().encode(tokens, edit)
        tokens, last = self.enter(tokens), self.depth - 1
        for i in range(last):
            tokens = self.layer(i, edit(i, tokens) if edit else tokens)
        tokens = self.before(last, edit(last, tokens) if edit else tokens)
        block: Block = self.blocks[last]  # type: ignore[assignment]
        x = block.at(tokens.x, tokens.pool_at, self.mask(tokens))  # [B, width]: no other position is needed
        return self.finish(self.project(self.norm(x)), tokens)

    def attention_weights(self, i: int, tokens: Tokens) -> Tensor:
        """Attention probabilities of layer i for what enters it: [B, heads, L, L]."""
        block: Block = self.blocks[i]  # type: ignore[assignment]
        return block.attention_weights(self.before(i, tokens).x, self.mask(tokens))
