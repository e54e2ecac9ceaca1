"""Stems of a ViT cut out of a timm backbone: its maps become patches (a hybrid ViT); it may also say what it knows.

A backbone that was trained to name classes places an image by itself: at the mean of its classes' name vectors,
weighted by its probabilities (ConSE, Norouzi et al. 2014, arXiv 1312.5650). `KnowingStem` keeps that answer beside
the transformer and lets it speak where an image is unlike those that the transformer was trained on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KEPT = 10  # classes in the weighted mean, as in the paper
HIDDEN = 1024  # of the two-layer network on the pooled feature


class BackboneStem(nn.Module):
    """Stages of a timm backbone at the patch grid, then a linear map to the width.

    "timm:NAME:3+4" joins stages 3 and 4. A first stage finer than the patch grid is folded into it (each patch
    holds its cells side by side), deeper stages than the grid are enlarged to it.
    """

    def __init__(self, stem: str, patch: int, width: int):
        super().__init__()
        import timm

        _, name, stages = stem.split(":")
        indices = tuple(int(s) for s in stages.split("+"))
        self.trunk = timm.create_model(name, pretrained=False, features_only=True, out_indices=indices)
        features = self.trunk.feature_info.get_dicts()  # type: ignore[union-attr, operator]
        reduction = features[0]["reduction"]
        if patch % reduction:
            raise ValueError(f"{stem} begins at 1/{reduction}: set patch_size to that, or to a multiple")
        self.patch, self.fold = patch, patch // reduction
        place = features[-1]["module"]
        if place.startswith("blocks.") and hasattr(self.trunk, "blocks"):  # timm keeps the later stages here
            self.trunk.blocks = self.trunk.blocks[: int(place.split(".")[1]) + 1]  # type: ignore[index]
        self.channels = [f["num_chs"] for f in features]
        self.joined = self.channels[0] * self.fold**2 + sum(self.channels[1:])
        self.out = nn.Linear(self.joined, width)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, width, H / patch, W / patch]"""
        return self.to_width(self.join(self.stages(images)))

    def to_width(self, maps: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, width, h, w]"""
        return self.out(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def stages(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> the maps of the chosen stages, finest first."""
        if self.fold > 1 and (images.shape[-2] % self.patch or images.shape[-1] % self.patch):
            size = "x".join(map(str, images.shape[-2:]))
            raise ValueError(f"images of {size} px do not divide into patches of {self.patch} px; resize them")
        # on CPUs the bf16 backward of depthwise convolutions is several times slower than fp32
        fast = images.device.type != "cpu" or not torch.is_grad_enabled()
        with torch.autocast(images.device.type, enabled=fast and torch.is_autocast_enabled(images.device.type)):
            return self.trunk(images.to(memory_format=torch.channels_last))

    def join(self, stages: list[Tensor]) -> Tensor:
        """Stages of the trunk, all at the patch grid: [B, C, h, w]"""
        first, *deeper = stages
        first = F.pixel_unshuffle(first, self.fold) if self.fold > 1 else first
        larger = [F.interpolate(x, first.shape[-2:], mode="bilinear", align_corners=False) for x in deeper]
        return torch.cat([first, *larger], 1)


class KnowingStem(BackboneStem):
    """A whole classifier as a stem. Beside its patches it gives the pooled feature f, which goes round the layers.

    The head is z = (1 - g) unit(transformer + guess(f)) + g ConSE(f): `guess` is a two-layer network, g says how
    strange the image is.
    """

    def __init__(self, stem: str, patch: int, width: int, classes: int, dim: int):
        import timm

        super().__init__(stem, patch, width)
        net = timm.create_model(stem.split(":")[1], pretrained=False, num_classes=classes)
        if not (hasattr(net, "conv_head") and hasattr(net, "classifier")):
            raise ValueError(f"{stem}: a stem that knows classes is cut out of one of timm's EfficientNets")
        self.expand = nn.Sequential(net.conv_head, net.bn2)  # type: ignore[arg-type]  # last map -> features
        self.classify: nn.Linear = net.classifier  # type: ignore[assignment]
        self.names = nn.Parameter(F.normalize(torch.randn(classes, dim), dim=-1))  # vectors of the class names
        features = self.classify.in_features
        self.guess = nn.Sequential(
            Standard(features),
            nn.Dropout(0.2),
            nn.Linear(features, HIDDEN),
            nn.GELU(),
            nn.Dropout(0.4),
            nn.Linear(HIDDEN, dim),
        )
        self.standard = Standard(self.joined)
        self.strange = Strangeness(self.channels[0])

    def to_width(self, maps: Tensor) -> Tensor:
        return self.out(self.standard(maps.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)

    def features(self, stages: list[Tensor]) -> Tensor:
        """Of the whole and of each place of the last map [B, 1 + h*w, F]."""
        cells = self.expand(stages[-1]).flatten(2).transpose(1, 2)  # [B, h*w, F]
        return torch.cat([cells.mean(1, keepdim=True), cells], 1)

    def beside(self, stages: list[Tensor]) -> Tensor:
        """Those features and the log odds of being strange [B, 1 + h*w, F + 1]."""
        features = self.features(stages)
        odds = self.strange(stages[0]).to(features.dtype)
        return torch.cat([features, odds[:, None, None].expand(-1, features.shape[1], 1)], -1)

    def answer(self, z: Tensor, beside: Tensor) -> Tensor:
        """What the transformer says [..., D] and what went round it [..., F + 1] -> [..., D]"""
        feature, gate = beside[..., :-1], beside[..., -1:].float().sigmoid()
        seen = F.normalize(z.float() + self.guess(feature).float(), dim=-1)
        return (1 - gate) * seen + gate * self.named(self.classify(feature))

    def named(self, logits: Tensor) -> Tensor:
        """ConSE: mean of the likeliest classes by name, weighted by probability. Logits [..., C] -> [..., D] unit"""
        p = logits.float().softmax(-1)
        p = p * (p >= p.topk(min(KEPT, p.shape[-1]), -1).values[..., -1:])
        return F.normalize(p @ self.names.float(), dim=-1)


class Standard(nn.Module):
    """(x - mean) / std over the last axis, with statistics that were fitted once."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)

    def fit(self, x: Tensor) -> None:
        """From rows [N, C]."""
        self.mean.copy_(x.float().mean(0))
        self.std.copy_(x.float().std(0) + 1e-3)


class Strangeness(nn.Module):
    """Log odds that an image is unlike the training images: how far its map is from them, as a Gaussian sees it.

    Statistics are the mean and the maximum of each channel; d^2 is Mahalanobis' distance over their number.
    Never strange until it was fitted.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.white = nn.Linear(2 * channels, 2 * channels)
        self.edge = nn.Parameter(torch.tensor([50.0, 1.0]))  # log d^2 at even odds, and the slope there

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, h, w] -> [B]"""
        edge, slope = self.edge
        return slope * (self.distance(self.statistics(maps)).log() - edge)

    @staticmethod
    def statistics(maps: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 2C]"""
        return torch.cat([maps.float().mean((2, 3)), maps.float().amax((2, 3))], 1)

    def distance(self, statistics: Tensor) -> Tensor:
        """[B, 2C] -> d^2 [B], about 1 for a training image"""
        return F.linear(statistics, self.white.weight.float(), self.white.bias.float()).square().mean(-1)

    @torch.no_grad()
    def fit(self, usual: Tensor, shrink: float = 0.1) -> None:
        """From statistics of training images [N, 2C]; their correlations are shrunk towards none.

        One in a hundred of them is called strange, and one in twenty has a chance of more than 1 in 20 to be so.
        """
        mean, std = usual.mean(0), usual.std(0) + 1e-3
        x = ((usual - mean) / std).double()
        correlations = (1 - shrink) * (x.T @ x / len(x)) + shrink * torch.eye(x.shape[1], dtype=x.dtype)
        white = torch.linalg.inv(torch.linalg.cholesky(correlations)).float() / std
        self.white.weight.copy_(white)
        self.white.bias.copy_(-white @ mean)
        most, all_but_few = self.distance(usual).log().quantile(torch.tensor([0.95, 0.99]))
        self.edge.copy_(torch.stack([all_but_few, 3 / (all_but_few - most)]))
