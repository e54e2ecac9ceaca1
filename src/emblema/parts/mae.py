"""A masked autoencoder around an image transformer: most patches are hidden, a light decoder paints them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from emblema.core.errors import NoSuchDoor
from emblema.encoders.block import Block, LayerNorm
from emblema.encoders.vit import ViT
from emblema.parts.masking import random_patches


class MaskedAutoencoder(nn.Module):
    """MAE's decoder: [CLS] and the visible patches in, all patches out.

    Args:
        image: the tower that is trained; it is not kept here.
        width, depth, heads: of the decoder (512, 8 and 16 in the paper).

    He et al. 2021 (2111.06377).
    """

    def __init__(self, image: nn.Module, width: int = 128, depth: int = 2, heads: int = 4):
        super().__init__()
        if not isinstance(image, ViT) or image.class_token is None:
            raise NoSuchDoor(
                f"masked autoencoding hides patch tokens, and {type(image).__name__} has none (or no [CLS]): choose an "
                "architecture with a ViT image tower"
            )
        patch = image.config.patch_size
        side = image.image_size // patch
        self.patch, self.grid = patch, (side, side)
        self.embed = nn.Linear(image.width, width)
        self.mask = nn.Parameter(torch.randn(width) * 0.02)
        self.register_buffer("positions", sine_positions(side, width), persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads, eps=1e-6) for _ in range(depth))
        self.norm = LayerNorm(width, eps=1e-6)
        self.pixels = nn.Linear(width, 3 * patch * patch)

    def forward(self, image: ViT, pictures: Tensor, noise: Tensor, ratio: float = 0.75) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, H, W] and uniform noise [B, P] -> (painted patches [B, P, p*p*3], hidden [B, P])."""
        noise = noise.to(pictures.device)
        kept, hidden = random_patches(noise, ratio)
        tokens = image.transform(image.embed(pictures).hide(kept))
        return self.decode(image.norm(tokens.x), kept, hidden), hidden

    def decode(self, x: Tensor, kept: Tensor, hidden: Tensor) -> Tensor:
        """[CLS] and kept patches [B, 1 + K, image width], in the order of `kept` [B, K] -> [B, P, p*p*3]."""
        x = self.embed(x)  # [B, 1 + K, width]
        whole = self.mask.to(x.dtype).expand(*hidden.shape, -1)  # [B, P, width]
        whole = whole.scatter(1, kept[..., None].expand(-1, -1, x.shape[-1]), x[:, 1:])
        positions: Tensor = self.positions  # type: ignore[assignment]
        x = torch.cat([x[:, :1], whole], 1) + positions.to(x.dtype)  # [B, 1 + P, width]
        for block in self.blocks:
            x = block(x)
        return self.pixels(self.norm(x))[:, 1:]


def sine_positions(side: int, width: int) -> Tensor:
    """Fixed positions of [CLS] (zero) and a square of patches: [1 + side^2, width], half for columns, half for rows."""
    if width % 4:
        raise ValueError(f"sine positions need a width that is a multiple of 4, not {width}")
    rate = 1 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    at = torch.arange(side, dtype=torch.float64)
    angle = at[:, None] * rate  # [side, width / 4]
    one = torch.cat([angle.sin(), angle.cos()], 1)  # [side, width / 2]
    rows, columns = one[:, None].expand(-1, side, -1), one[None].expand(side, -1, -1)
    grid = torch.cat([columns, rows], -1).flatten(0, 1)
    return torch.cat([grid.new_zeros(1, width), grid]).float()
