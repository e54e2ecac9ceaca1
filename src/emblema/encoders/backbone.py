"""Any convolutional or other backbone of timm and torchvision behind the face of a tower.

Weights are random unless a checkpoint is loaded: nothing is ever downloaded. The backbone gives one feature
map [B, C, H, W] (layouts differ and are made equal here), its mean goes through a linear or a two-layer head
into the joint space. The head works at each place as well, which gives the dense features. Weights that were
trained with timm's own pooling and classifier (open_clip's) keep them: pool="own", head="own".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from emblema.core.errors import NoSuchDoor, UnknownName
from emblema.core.tokens import Edit, Tokens
from emblema.encoders.tower import ImageTower

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which backbone, and how it joins the joint space."""

    kind: str = "backbone"
    name: str = "timm:resnet18"  # "timm:NAME" or "torchvision:NAME"
    image_size: int = 224
    pool: str = "mean"  # over the feature map; also "max", or timm's: "own", or one of its kinds: "own:token"
    head: str = "linear"  # "mlp": linear, GELU, linear; "own": timm's classifier; "none"
    head_bias: bool = True
    hidden: int | None = None  # of the mlp head; None: the joint dim
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def build(self, dim: int) -> BackboneTower:
        return BackboneTower(self, dim)


class BackboneTower(ImageTower):
    """Feature map -> mean -> head. `width` is the channels of the map."""

    depth = 0  # no transformer layers that prompts or probes could enter

    def __init__(self, config: BackboneConfig, dim: int):
        super().__init__(config.image_size, config.mean, config.std)
        self.own_pool = config.pool.partition(":")[0] == "own"
        if not self.own_pool and config.pool not in ("mean", "max"):
            raise ValueError(f'pool={config.pool!r} is not "mean", "max", "own" or "own:KIND"')
        if (self.own_pool or config.head == "own") and not config.name.startswith("timm:"):
            raise ValueError(f"{config.name} keeps no pooling and no classifier of its own; only timm's do")
        self.config, self.dim = config, dim
        self.trunk = _trunk(config, dim)
        self.width, self.layout = _probe(self.trunk, config)
        self.head = _head(config, self.width, dim)

    def map(self, raw: Tensor) -> Tensor:
        """Images -> the last feature map [B, width, H, W] (1x1 where the backbone keeps no map)."""
        return self._map(_features(self.trunk, self.normalise(raw)))

    def _map(self, features: Tensor) -> Tensor:
        return _to_map(features, self.layout, getattr(self.trunk, "num_prefix_tokens", 0))

    def embed(self, raw: Tensor) -> Tokens:
        """The cells of the map as tokens, the pooled vector first."""
        features = _features(self.trunk, self.normalise(raw))
        x = self._map(features)
        cells = x.flatten(2).transpose(1, 2)  # [B, H*W, width]
        if self.own_pool:
            whole = self.trunk.forward_head(features, pre_logits=True)  # type: ignore[operator]
        else:
            whole = cells.mean(1) if self.config.pool == "mean" else cells.amax(1)
        pool_at = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
        return Tokens(torch.cat([whole[:, None], cells], 1), pool_at, first_patch=1, grid=(x.shape[2], x.shape[3]))

    def pool(self, tokens: Tokens) -> Tensor:
        return tokens.pooled()

    def project(self, x: Tensor) -> Tensor:
        return self.trunk.get_classifier()(x) if self.config.head == "own" else self.head(x)  # type: ignore[operator]

    def dense(self, raw: Tensor | Tokens, edit: Edit | None = None, values: bool = False) -> Tensor:
        """The head at each place of the map [B, H, W, dim]; there is no attention, so `values` changes nothing."""
        if edit is not None:
            raise NoSuchDoor(f"{self.config.name} has no layers that prompts can enter; choose a ViT tower")
        if self.layout == "vector":
            raise NoSuchDoor(
                f"{self.config.name} gives one vector an image and no feature map; choose another backbone"
            )
        tokens = raw if isinstance(raw, Tokens) else self.embed(raw)
        assert tokens.grid is not None
        cells = tokens.patches()
        return self.project(self._pooled_alone(cells) if self.own_pool else cells).unflatten(1, tokens.grid)

    def _pooled_alone(self, cells: Tensor) -> Tensor:
        """What timm's pooling would give if it saw one place only: [B, H*W, width] -> the same."""
        if self.layout == "tokens":
            raise NoSuchDoor(
                f"{self.config.name} pools its tokens in its own way, which has no meaning at one place; "
                "choose a backbone that gives a feature map"
            )
        ones = cells.flatten(0, 1)[:, :, None, None]  # [B*H*W, width, 1, 1]
        ones = ones.permute(0, 2, 3, 1) if self.layout == "nhwc" else ones
        return self.trunk.forward_head(ones, pre_logits=True).unflatten(0, cells.shape[:2])  # type: ignore[operator]


def _head(config: BackboneConfig, width: int, dim: int) -> nn.Module:
    if config.head == "linear":
        return nn.Linear(width, dim, bias=config.head_bias)
    if config.head == "mlp":
        hidden = config.hidden or dim
        return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, dim, bias=config.head_bias))
    if config.head not in ("own", "none"):
        raise ValueError(f'head={config.head!r} is not "linear", "mlp", "own" or "none"')
    if config.head == "none" and width != dim:
        raise ValueError(f"without a head the width {width} of {config.name} must be the joint dim, not {dim}")
    return nn.Identity()


def _trunk(config: BackboneConfig, dim: int) -> nn.Module:
    library, _, name = config.name.partition(":")
    if library == "timm":
        import timm

        if not timm.is_model(name):
            raise UnknownName("timm backbone", name, timm.list_models())
        kind = config.pool.partition(":")[2]
        settings: dict[str, Any] = {"num_classes": dim if config.head == "own" else 0}
        settings |= {"global_pool": kind} if kind else {}
        try:  # transformers want to know the size, most convolutional networks refuse the argument
            return timm.create_model(name, pretrained=False, img_size=config.image_size, **settings)
        except TypeError:
            return timm.create_model(name, pretrained=False, **settings)
    if library == "torchvision":
        import torchvision

        known = torchvision.models.list_models(module=torchvision.models)
        if name not in known:
            raise UnknownName("torchvision backbone", name, known)
        return _headless(torchvision.models.get_model(name, weights=None), name)
    raise ValueError(f'backbone {config.name!r}: write "timm:NAME" or "torchvision:NAME"')


def _headless(model: nn.Module, name: str) -> nn.Module:
    """A torchvision classifier up to its last feature map."""
    if hasattr(model, "features"):
        parts = ("features", "norm", "permute")  # Swin: norm over the last axis, then channels first
    elif hasattr(model, "layer4"):
        parts = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    else:
        raise NoSuchDoor(f"torchvision:{name} has no feature map that can be cut out; try its timm namesake")
    trunk = nn.Sequential()
    for part in parts:
        if hasattr(model, part):
            trunk.add_module(part, getattr(model, part))
    if type(model).__name__ == "DenseNet":  # its last ReLU is a function
        trunk.add_module("relu", nn.ReLU())
    return trunk


def _features(trunk: nn.Module, images: Tensor) -> Tensor:
    """What the trunk gives, in its own layout; it works channels last, which is faster on CPUs."""
    return getattr(trunk, "forward_features", trunk)(images.to(memory_format=torch.channels_last))


@torch.no_grad()
def _probe(trunk: nn.Module, config: BackboneConfig) -> tuple[int, str]:
    """Channels and layout, seen on one blank picture: "nchw", "nhwc", "tokens" or "vector"."""
    training = trunk.training
    x = _features(trunk.eval(), torch.zeros(1, 3, config.image_size, config.image_size))
    trunk.train(training)
    if x.dim() == 4:
        last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"  # timm names the layout where it is not the usual one
        return (x.shape[-1], "nhwc") if last else (x.shape[1], "nchw")
    return x.shape[-1], "tokens" if x.dim() == 3 else "vector"


def _to_map(x: Tensor, layout: str, prefix: int) -> Tensor:
    """Any layout -> [B, C, H, W]"""
    if layout == "nhwc":
        return x.permute(0, 3, 1, 2)
    if layout == "vector":
        return x[:, :, None, None]
    if layout == "tokens":
        x = x[:, prefix:]
        side = round(x.shape[1] ** 0.5)
        if side * side != x.shape[1]:
            raise NoSuchDoor(f"{x.shape[1]} tokens are not a square grid; give square images")
        return x.transpose(1, 2).unflatten(2, (side, side))
    return x
