"""A frozen classifier that speaks where the tower beside it knows nothing.

A network that was trained to name classes places an image by itself: at the mean of its class names' vectors, weighted
by their probabilities (ConSE, Norouzi et al. 2014, arXiv 1312.5650). How much that counts depends on how strange the
image is to the tower: its Mahalanobis distance from the tower's training images, in the classifier's own maps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

KEPT = 10  # classes in the weighted mean, as in the paper
MOST = 0.9  # weight of the classifier where an image is strangest: prompts in the tower always move the answer
STAGE = 3  # of the network, whose maps say how strange an image is


class Conse(nn.Module):
    """A timm classifier "NAME:CLASSES", the vectors of its class names, and a gate.

    Its batch norms are folded into the convolutions: nothing in it depends on the other images of a batch.
    """

    def __init__(self, network: str, dim: int):
        import timm

        super().__init__()
        name, classes = network.split(":")
        net = timm.create_model(name, pretrained=False, num_classes=int(classes)).eval()
        channels = net.feature_info[STAGE]["num_chs"]  # type: ignore[index]
        self.net = folded(net)
        self.names = nn.Parameter(F.normalize(torch.randn(int(classes), dim), dim=-1))
        self.strange = Strangeness(channels)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> where their names lie, and the log odds of being strange [B, D + 1]"""
        images = images.to(memory_format=torch.channels_last)  # depthwise convolutions are several times faster so
        last, maps = self.net.forward_intermediates(images, indices=[STAGE])  # type: ignore[operator]
        named = self.named(self.net.forward_head(last))  # type: ignore[operator]
        return torch.cat([named, self.strange(maps[0])[:, None]], 1)

    def maps(self, images: Tensor) -> Tensor:
        """The maps that say how strange an image is: normalised [B, 3, H, W] -> [B, C, h, w]"""
        images = images.to(memory_format=torch.channels_last)
        return self.net.forward_intermediates(images, indices=[STAGE], intermediates_only=True)[0]  # type: ignore[operator]

    def named(self, logits: Tensor) -> Tensor:
        """Mean vector of the likeliest classes [B, C] -> [B, D] unit"""
        p = logits.float().softmax(-1)
        p = p * (p >= p.topk(min(KEPT, p.shape[-1]), -1).values[:, -1:])
        return F.normalize(p @ self.names.float(), dim=-1)

    def mix(self, z: Tensor, known: Tensor) -> Tensor:
        """What the tower says [B, D] and what `forward` gave [B, D + 1] -> [B, D]"""
        g = MOST * known[:, -1:].sigmoid()
        return (1 - g) * F.normalize(z.float(), dim=-1) + g * known[:, :-1]


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
        edge, slope = self.edge.float()
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


def folded(net: nn.Module) -> nn.Module:
    """Each batch norm joins the convolution before it; what is left of it is its activation."""
    place = ""
    for name, part in list(net.named_modules()):
        if isinstance(part, nn.Conv2d):
            place = name
        elif isinstance(part, nn.BatchNorm2d):
            net.set_submodule(place, fuse_conv_bn_eval(net.get_submodule(place), part))  # type: ignore[arg-type]
            net.set_submodule(name, getattr(part, "act", nn.Identity()))
    return net
