"""Vision transformers: CLIP's form (norm before the encoder, [CLS]), the plain form, and SigLIP's pooling.

The stem that makes patches is a choice: one convolution (ViT), a few small ones (better with few
data), or the first stages of any timm backbone (a hybrid ViT).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.tokens import Edit, Tokens
from emblema.encoders.block import Block, CrossAttention, LayerNorm, blocks
from emblema.encoders.conse import Conse
from emblema.encoders.tower import ImageTower, Transformer

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Shape of a vision transformer. Defaults are CLIP's ViT-B/32."""

    kind: str = "vit"
    image_size: int = 224
    patch_size: int = 32
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    activation: str = "gelu"  # OpenAI's weights: "quick_gelu"
    eps: float = 1e-5
    norm_before: bool = True  # ln_pre
    class_token: bool = True
    pool: str = "cls"  # "cls", "mean", "map": attention pooling with a learned query (SigLIP), or "cascade" (CoCa)
    queries: int = 256  # of the first pooler of "cascade"
    stem: str = "patch"  # "patch", "conv", or "timm:NAME:STAGE+STAGE"
    shrink: int = 1  # the stem sees images so many times smaller
    knows: str = ""  # "NAME:CLASSES": timm's classifier that places images unlike the training images by name
    patch_bias: bool = False
    project: bool = True  # False: the pooled width is the joint space (SigLIP)
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def build(self, dim: int) -> ViT:
        return ViT(self, dim)


class ViT(Transformer, ImageTower):
    """A vision transformer as an image tower."""

    def __init__(self, config: ViTConfig, dim: int):
        ImageTower.__init__(self, config.image_size, config.mean, config.std)
        if config.image_size % config.patch_size:
            raise ValueError(f"image size {config.image_size} is not a multiple of patch {config.patch_size}")
        if config.pool == "cls" and not config.class_token:
            raise ValueError('pool="cls" needs class_token=True; choose pool="mean" or "map"')
        self.config, self.width, self.depth, self.dim = config, config.width, config.depth, dim
        self.pool_kind = config.pool
        side = config.image_size // config.patch_size
        self.patch_drop = 0.0  # share of patches hidden while training; set by the training loop
        self.stem = _stem(config)
        self.conse = Conse(config.knows, dim) if config.knows else None
        self.class_token = nn.Parameter(torch.randn(config.width) * config.width**-0.5) if config.class_token else None
        self.positions = nn.Parameter(torch.randn(side * side + config.class_token, config.width) * config.width**-0.5)
        self.norm_before = LayerNorm(config.width, eps=config.eps) if config.norm_before else nn.Identity()
        self.blocks = blocks(config)
        self.norm = LayerNorm(config.width, eps=config.eps)
        self.map: AttentionPool | Cascade | None = AttentionPool(config) if config.pool == "map" else None
        if config.project:
            self.projection = nn.Parameter(torch.randn(config.width, dim) * config.width**-0.5)
        elif config.width != dim:
            raise ValueError(f"without a projection the width {config.width} must be the joint dim, not {dim}")
        else:
            self.projection = None
        if config.pool == "cascade":
            with torch.random.fork_rng(devices=[]):  # what is built next starts as it would without the poolers
                self.map = Cascade(config.width, config.heads, config.queries, config.eps)

    def embed(self, raw: Tensor) -> Tokens:
        images = self.normalise(raw)
        tokens = self.embed_alone(images)
        return tokens if self.conse is None else replace(tokens, beside=self.conse(images))

    def embed_alone(self, images: Tensor) -> Tokens:
        """Tokens without what goes beside the layers, which speaks of whole images only."""
        small = images if self.config.shrink == 1 else F.avg_pool2d(images, self.config.shrink)
        return self.from_patches(self.stem(small))

    def from_patches(self, patches: Tensor) -> Tokens:
        """What the stem gives [B, width, H, W] -> tokens before layer 0."""
        batch, _, height, width = patches.shape
        x = patches.flatten(2).transpose(1, 2)  # [B, H*W, width]
        positions = self.positions_at(height, width).to(x.dtype)  # [(1 +) H*W, width]
        first = 0
        if self.class_token is not None:
            x = torch.cat([self.class_token.to(x.dtype).expand(batch, 1, -1), x], 1)
            first = 1
        pool_at = torch.zeros(batch, dtype=torch.long, device=x.device)
        tokens = Tokens(x + positions, pool_at, first_patch=first, grid=(height, width))
        return self._drop_patches(tokens) if self.training and self.patch_drop else tokens

    def _drop_patches(self, tokens: Tokens) -> Tokens:
        """Each picture keeps its own random patches, the same number in all (FLIP, arXiv 2212.00794)."""
        assert tokens.grid is not None
        count = tokens.grid[0] * tokens.grid[1]
        kept = max(round(count * (1 - self.patch_drop)), 1)
        order = torch.rand(len(tokens), count, device=tokens.x.device).argsort(1)
        return tokens.hide(order[:, :kept].sort(1).values)

    def positions_at(self, height: int, width: int) -> Tensor:
        """Positions for a grid [(1 +) H*W, width]; another grid than the trained one is interpolated."""
        side = self.image_size // self.config.patch_size
        if (height, width) == (side, side):
            return self.positions
        first = int(self.class_token is not None)
        grid = self.positions[first:].unflatten(0, (side, side)).permute(2, 0, 1)[None]  # [1, width, side, side]
        grid = F.interpolate(grid.float(), (height, width), mode="bicubic", antialias=True)[0].flatten(1).T
        return torch.cat([self.positions[:first], grid.to(self.positions.dtype)])

    def before(self, i: int, tokens: Tokens) -> Tokens:
        return tokens.with_x(self.norm_before(tokens.x)) if i == 0 else tokens

    def pool(self, tokens: Tokens) -> Tensor:
        if self.map is None:
            return super().pool(tokens)
        return self.map(self.norm(tokens.x))

    def finish(self, z: Tensor, tokens: Tokens) -> Tensor:
        return z if tokens.beside is None or self.conse is None else self.conse.mix(z, tokens.beside)

    def project(self, x: Tensor) -> Tensor:
        return x if self.projection is None else x @ self.projection.to(x.dtype)

    def dense(self, raw: Tensor | Tokens, edit: Edit | None = None, values: bool = False) -> Tensor:
        tokens = self.enter(raw if isinstance(raw, Tokens) else self.embed_alone(self.normalise(raw)))
        last = self.depth - 1
        for i in range(self.depth):
            tokens = edit(i, tokens) if edit else tokens
            if i == last and values:
                block: Block = self.blocks[i]  # type: ignore[assignment]
                tokens = tokens.with_x(block.value_path(self.before(i, tokens).x))
            else:
                tokens = self.layer(i, tokens)
        patches = self.norm(tokens.patches())  # [B, H*W, width]
        if self.map is not None:
            patches = self.map.values(patches)
        assert tokens.grid is not None
        return self.project(patches).unflatten(1, tokens.grid)  # [B, H, W, dim]

    def local(self, raw: Tensor | Tokens, radius: int = 1) -> Tensor:
        tokens = self.enter(raw if isinstance(raw, Tokens) else self.embed_alone(self.normalise(raw)))
        assert tokens.grid is not None
        return self.encode(tokens.around(radius)).unflatten(0, (len(tokens), *tokens.grid))


class AttentionPool(nn.Module):
    """A learned query reads all tokens, then a residual feed-forward (SigLIP's head)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.query = nn.Parameter(torch.randn(config.width) * config.width**-0.5)
        self.block = Block(
            config.width,
            config.heads,
            mlp_ratio=config.mlp_ratio,
            activation=config.activation,
            eps=config.eps,
        )
        self.block.norm1 = nn.Identity()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, width] -> [B, width]"""
        query = self.query.to(x.dtype).expand(x.shape[0], 1, -1)
        pooled = self.block.attention.at(x, query)
        return (pooled + self.block.mlp(self.block.norm2(pooled)))[:, 0]

    def values(self, x: Tensor) -> Tensor:
        """What the head would pool if it read one place only: [B, L, width]."""
        pooled = self.block.attention.values(x)
        return pooled + self.block.mlp(self.block.norm2(pooled))


class Pooler(nn.Module):
    """Learned queries read all tokens."""

    def __init__(self, width: int, heads: int, queries: int, eps: float):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width) * width**-0.5)
        self.norm_queries = LayerNorm(width, eps=eps)
        self.attention = CrossAttention(width, heads)
        self.norm = LayerNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, width] -> [B, queries, width]"""
        queries = self.norm_queries(self.queries).to(x.dtype).expand(x.shape[0], -1, -1)
        return self.norm(self.attention(queries, x))

    def values(self, x: Tensor) -> Tensor:
        """What a query would read of one place only: [B, L, width]"""
        return self.norm(self.attention.values(x))


class Cascade(nn.Module):
    """CoCa's poolers: many queries read the image for the captions, one query reads those for the contrast."""

    def __init__(self, width: int, heads: int, queries: int, eps: float):
        super().__init__()
        self.captioning = Pooler(width, heads, queries, eps)
        self.contrastive = Pooler(width, heads, 1, eps)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, width] -> [B, width]"""
        return self.contrastive(self.captioning(x))[:, 0]

    def values(self, x: Tensor) -> Tensor:
        """What would be pooled of one place only: [B, L, width]"""
        return self.contrastive.values(self.captioning.values(x))


class PatchStem(nn.Module):
    """One convolution with stride = kernel, computed as a matrix product."""

    def __init__(self, patch: int, width: int, bias: bool):
        super().__init__()
        self.patch = patch
        self.weight = nn.Parameter(torch.empty(width, 3, patch, patch))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        nn.init.normal_(self.weight, std=(3 * patch * patch) ** -0.5)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, width, H / patch, W / patch]"""
        batch, _, height, width = images.shape
        p = self.patch
        if height % p or width % p:
            raise ValueError(f"images of {height}x{width} px do not divide into patches of {p} px; resize them")
        patches = images.view(batch, 3, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5).flatten(3)
        x = F.linear(patches, self.weight.flatten(1), self.bias)  # [B, H/p, W/p, width]
        return x.permute(0, 3, 1, 2)


def _stem(config: ViTConfig) -> nn.Module:
    patch = config.patch_size // config.shrink
    if config.stem == "patch":
        return PatchStem(patch, config.width, config.patch_bias)
    if config.stem == "conv":
        return ConvStem(patch, config.width)
    if config.stem.startswith("timm:"):
        return BackboneStem(config)
    raise ValueError(f'unknown stem {config.stem!r}: use "patch", "conv" or "timm:NAME:STAGE"')


class ConvStem(nn.Sequential):
    """3x3 convolutions of stride 2 down to the patch grid (Xiao et al. 2021, arXiv 2106.14881)."""

    def __init__(self, patch: int, width: int):
        halvings = patch.bit_length() - 1
        if 2**halvings != patch:
            raise ValueError(f"a convolutional stem needs a patch size that is a power of 2, not {patch}")
        widths = [3] + [max(24, width >> (halvings - i)) for i in range(1, halvings + 1)]
        layers: list[nn.Module] = []
        for a, b in zip(widths, widths[1:]):
            layers += [nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(widths[-1], width, 1))


class BackboneStem(nn.Module):
    """Stages of a timm backbone at the patch grid, then a linear map to the width (a hybrid ViT).

    "timm:NAME:3+4" joins stages 3 and 4: the first has the grid, the deeper ones are enlarged to it.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        import timm

        _, name, stages = config.stem.split(":")
        indices = tuple(int(s) for s in stages.split("+"))
        self.trunk = timm.create_model(name, pretrained=False, features_only=True, out_indices=indices)
        features = self.trunk.feature_info.get_dicts()  # type: ignore[union-attr, operator]
        if features[0]["reduction"] * config.shrink != config.patch_size:
            raise ValueError(f"{config.stem} begins at 1/{features[0]['reduction']}: set patch_size / shrink to that")
        place = features[-1]["module"]
        if place.startswith("blocks.") and hasattr(self.trunk, "blocks"):  # timm keeps the later stages here
            self.trunk.blocks = self.trunk.blocks[: int(place.split(".")[1]) + 1]  # type: ignore[index]
        self.out = nn.Linear(sum(f["num_chs"] for f in features), config.width)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, width, H / patch, W / patch]"""
        return self.to_width(self.maps(images))

    def to_width(self, maps: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, width, h, w]"""
        return self.out(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def maps(self, images: Tensor) -> Tensor:
        """The joined stages, before the linear map: [B, C, H / patch, W / patch]."""
        # on CPUs the bf16 backward of depthwise convolutions is several times slower than fp32
        fast = images.device.type != "cpu" or not torch.is_grad_enabled()
        with torch.autocast(images.device.type, enabled=fast and torch.is_autocast_enabled(images.device.type)):
            return self.join(self.trunk(images.to(memory_format=torch.channels_last)))

    def join(self, stages: list[Tensor]) -> Tensor:
        """Stages of the trunk, the deeper ones enlarged to the grid of the first: [B, C, h, w]"""
        first, *deeper = stages
        larger = [F.interpolate(x, first.shape[-2:], mode="bilinear", align_corners=False) for x in deeper]
        return torch.cat([first, *larger], 1)
