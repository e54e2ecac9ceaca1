"""GroupViT's image tower: learned group tokens gather patches into segments, without any mask to learn from.

Between stages of transformer layers a grouping block gives each segment to one group; what a group was given becomes
a segment of the next stage. The last stage's segments are pooled. Xu et al. 2022 (arXiv 2202.11094).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.errors import NoSuchDoor
from emblema.core.tokens import Edit, Tokens
from emblema.encoders.block import Change, CrossAttention, LayerNorm
from emblema.encoders.vit import ViT, ViTConfig


@dataclass(frozen=True, kw_only=True)
class GroupViTConfig(ViTConfig):
    """Shape of a grouping tower: stages of layers, and groups at the end of all stages but the last."""

    kind: str = "groupvit"
    patch_size: int = 16
    width: int = 384
    heads: int = 6
    norm_before: bool = False
    class_token: bool = False
    pool: str = "mean"
    patch_bias: bool = True
    depths: tuple[int, ...] = (6, 3, 3)
    groups: tuple[int, ...] = (64, 8)
    hidden: int = 4096  # of the projector

    def build(self, dim: int) -> GroupViT:
        return GroupViT(self, dim)


@dataclass(frozen=True)
class Segments(Tokens):
    """Segments, behind them the group tokens of their stage."""

    groups: int = 0  # group tokens at the end of x
    before: Tensor | None = None  # [B, n, width] the group tokens of the stage before, after its layers
    shares: Tensor | None = None  # [B, P, S] how much of each patch is in each segment


class GroupViT(ViT):
    """A vision transformer whose tokens become fewer from stage to stage."""

    def __init__(self, config: GroupViTConfig, dim: int):
        if sum(config.depths) != config.depth or len(config.groups) != len(config.depths) - 1:
            raise ValueError(
                f"depths {config.depths} must sum to depth={config.depth}, and all stages but the last have groups, "
                f"got {config.groups}"
            )
        super().__init__(config, dim)
        width, eps = config.width, config.eps
        self.norm_patches = LayerNorm(width, eps=eps)
        self.ends = [sum(config.depths[: i + 1]) for i in range(len(config.depths))]  # layers behind which a stage ends
        sizes = [0, *config.groups]
        self.group_tokens = nn.ParameterList([torch.randn(n, width) * 0.02 for n in config.groups])
        self.from_before = nn.ModuleList(
            nn.Sequential(LayerNorm(width, eps=eps), Mixer(sizes[i], width // 2, sizes[i + 1])) if i else nn.Identity()
            for i in range(len(config.groups))
        )
        self.grouping = nn.ModuleList(Grouping(config, n) for n in config.groups)
        hidden = config.hidden
        del self.projection  # the plain tower's
        self.projection = nn.Sequential(  # type: ignore[assignment]
            nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, dim)
        )

    def embed(self, raw: Tensor) -> Tokens:
        patches = self.stem(self.normalise(raw)).permute(0, 2, 3, 1)  # [B, H, W, width]
        tokens = self.from_patches(self.norm_patches(patches).permute(0, 3, 1, 2))
        return Segments(**{f.name: getattr(tokens, f.name) for f in fields(tokens)})

    def layer(self, i: int, tokens: Tokens, change: Change | None = None) -> Tokens:
        assert isinstance(tokens, Segments)
        stage = next(s for s, end in enumerate(self.ends) if i < end)
        last = stage == len(self.grouping)
        if not last and i == (self.ends[stage - 1] if stage else 0):  # a stage begins: its group tokens join
            start = self.group_tokens[stage].to(tokens.x.dtype).expand(len(tokens), -1, -1)
            if tokens.before is not None:
                start = start + self.from_before[stage](tokens.before)
            tokens = replace(tokens, x=torch.cat([tokens.x, start], 1), groups=start.shape[1])
        tokens = super().layer(i, tokens, change)
        if last or i + 1 != self.ends[stage]:
            return tokens
        assert isinstance(tokens, Segments)
        segments, groups = tokens.x[:, : -tokens.groups], tokens.x[:, -tokens.groups :]
        x, share = self.grouping[stage](segments, groups)  # [B, G, width], [B, G, S]
        share = share.transpose(1, 2)  # [B, S, G]
        whole = share if tokens.shares is None else tokens.shares @ share
        return replace(tokens, x=x, groups=0, before=groups, shares=whole, first_patch=None, grid=None)

    def pool(self, tokens: Tokens) -> Tensor:
        return self.norm(tokens.x).mean(1)

    def project(self, x: Tensor) -> Tensor:
        return self.projection(x.flatten(0, -2)).unflatten(0, x.shape[:-1])  # type: ignore[operator]

    def dense(self, raw: Tensor | Tokens, edit: Edit | None = None, values: bool = False) -> Tensor:
        """Each place has the feature of the group that it is in; there is no value path, `values` changes nothing."""
        tokens = self.enter(raw if isinstance(raw, Tokens) else self.embed(raw))
        if edit is not None or tokens.grid is None:
            raise NoSuchDoor("the groups of a GroupViT are of whole pictures: dense features take no prompts")
        grouped = self.transform(tokens)
        assert isinstance(grouped, Segments) and grouped.shares is not None
        z = self.project(self.norm(grouped.x))  # [B, G, dim]
        mine = grouped.shares.argmax(2)  # [B, P]
        return z.gather(1, mine[..., None].expand(-1, -1, z.shape[-1])).unflatten(1, tokens.grid)

    def local(self, raw: Tensor | Tokens, radius: int = 1) -> Tensor:
        """As `dense`: a group already pools the places that belong together, so `radius` changes nothing."""
        return self.dense(raw)


class Mixer(nn.Module):
    """A feed-forward over the tokens: n of them become m."""

    def __init__(self, n: int, hidden: int, m: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(n, hidden), nn.GELU(), nn.Linear(hidden, m))

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, width] -> [B, m, width]"""
        return self.mlp(x.transpose(1, 2)).transpose(1, 2)


class Grouping(nn.Module):
    """Segments go to groups: each to one, by a hard choice whose gradient is that of the soft one."""

    def __init__(self, config: GroupViTConfig, groups: int):
        super().__init__()
        width, hidden, eps = config.width, round(config.width * config.mlp_ratio), config.eps
        self.norm_groups, self.norm_segments = LayerNorm(width, eps=eps), LayerNorm(width, eps=eps)
        self.mixer = Mixer(groups, width // 2, groups)
        self.norm_mixed = LayerNorm(width, eps=eps)
        self.cross = CrossAttention(width, config.heads)
        self.norm_cross = LayerNorm(width, eps=eps)
        self.mlp_cross = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.norm_asked = LayerNorm(width, eps=eps)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm_new = LayerNorm(width, eps=eps)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, segments: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        """[B, S, width], [B, G, width] -> new segments [B, G, width], soft assignment [B, G, S] (columns sum to 1)."""
        x = self.norm_segments(segments)
        g = self.norm_mixed(self.mixer(self.norm_groups(groups)))
        g = g + self.cross(g, x)
        g = self.norm_asked(g + self.mlp_cross(self.norm_cross(g)))
        score = (self.q(g) @ self.k(x).transpose(1, 2)).float() * x.shape[-1] ** -0.5  # [B, G, S]
        soft = score.softmax(1)  # over groups: each segment belongs somewhere
        if self.training:
            hard = F.gumbel_softmax(score, tau=1.0, hard=True, dim=1)
        else:
            hard = torch.zeros_like(soft).scatter_(1, soft.argmax(1, keepdim=True), 1.0) - soft.detach() + soft
        share = (hard / (hard.sum(2, keepdim=True) + 1)).to(x.dtype)  # + 1: a group may be empty
        new = g + self.out(share @ self.v(x))
        return new + self.mlp(self.norm_new(new)), soft
