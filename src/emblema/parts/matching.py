"""Does a text belong to a picture, and where is each of its words: a small ALBEF over the features of frozen towers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.encoders.block import LayerNorm
from emblema.parts.decoder import CrossBlock


class Matcher(nn.Module):
    """Words read each other and the places of a picture, `depth` times; their mean says whether the two belong
    together."""

    def __init__(self, dim: int, width: int = 128, heads: int = 4, depth: int = 2):
        super().__init__()
        # unit features have entries of 1 / sqrt(D): too small to learn from as they are
        self.words, self.places = (nn.Sequential(LayerNorm(dim), nn.Linear(dim, width)) for _ in range(2))
        self.blocks = nn.ModuleList(CrossBlock(width, heads, width) for _ in range(depth))
        self.norm, self.head = LayerNorm(width), nn.Linear(width, 2)

    def forward(self, words: Tensor, real: Tensor, places: Tensor) -> Tensor:
        """words [B, L, D], real [B, L] False at padding, places [B, P, D] -> logits [B, 2], column 1 says yes."""
        return self.shown(words, real, places)[0]

    def shown(self, words: Tensor, real: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, and the first attention of words to places, where a word has not read other places yet:
        [B, heads, L, P]"""
        x, memory = self.words(words), self.places(places)
        weights = []
        for block in self.blocks:
            x, read = block.shown(x, memory, real[:, None, None])  # type: ignore[operator]
            weights.append(read)
        share = real.to(x.dtype) / real.sum(1, keepdim=True)
        return self.head((self.norm(x) * share[..., None]).sum(1)), weights[0]


@torch.enable_grad()
def word_maps(matcher: Matcher, words: Tensor, real: Tensor, places: Tensor) -> Tensor:
    """Where each word of matched pairs is: A ReLU(d match / d A), mean over heads: [B, L, P]

    Gao et al. 2022 (2111.09452), after ALBEF.
    """
    logits, attention = matcher.shown(words, real, places)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), attention)
    return (attention * gradient.relu()).mean(1).detach()


def best_box(map_: Tensor, boxes: Tensor, floor: float = 0.5) -> int | None:
    """The box [N, 4] that holds most of a map [H, W] for its size: the largest sum / sqrt(area). None without any.

    The map is stretched to 0..1 first, and what is below `floor` does not count. Boxes that leave the map or have no
    pixel cannot win.
    """
    low, high = map_.min(), map_.max()
    if not len(boxes) or high <= low:
        return None
    stretched = (map_ - low) / (high - low)
    inside = box_sums(stretched.masked_fill(stretched < floor, 0), boxes)  # [N]
    whole = boxes.round()
    area = (whole[:, 2:] - whole[:, :2]).clamp(min=0).prod(1)
    size = torch.tensor([map_.shape[1], map_.shape[0]] * 2)
    fits = (whole[:, :2] >= 0).all(1) & (whole <= size).all(1) & (area > 0)
    score = torch.where(fits, inside / area.clamp(min=1).sqrt(), -torch.inf)
    return int(score.argmax()) if fits.any() else None


def box_sums(map_: Tensor, boxes: Tensor) -> Tensor:
    """Sums of a map [H, W] over boxes [N, 4] at whole pixels, by an integral image; what lies outside is 0: [N]"""
    total = F.pad(map_.double().cumsum(0).cumsum(1), (1, 0, 1, 0))  # [H + 1, W + 1]
    at = boxes.round().long()
    x1, x2 = at[:, 0].clamp(0, map_.shape[1]), at[:, 2].clamp(0, map_.shape[1])
    y1, y2 = at[:, 1].clamp(0, map_.shape[0]), at[:, 3].clamp(0, map_.shape[0])
    return (total[y2, x2] - total[y1, x2] - total[y2, x1] + total[y1, x1]).to(map_.dtype)
