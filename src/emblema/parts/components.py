"""Connected components of small masks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def components(mask: Tensor) -> Tensor:
    """bool [h, w] -> long [h, w]: a number from 1 on for each component (diagonals touch), 0 outside."""
    ids = torch.arange(1, mask.numel() + 1, dtype=torch.float64).view(mask.shape) * mask
    while True:
        grown = F.max_pool2d(ids[None, None], 3, 1, 1)[0, 0] * mask
        if grown.equal(ids):
            break
        ids = grown
    return ids.unique(return_inverse=True)[1].view(mask.shape) + (0 if not mask.all() else 1)


def boxed(mask: Tensor) -> Tensor:
    """bool [h, w] -> bool [h, w]: the union of the boxes around its components."""
    numbers, out = components(mask), torch.zeros_like(mask)
    for number in range(1, int(numbers.max()) + 1):
        rows, columns = (numbers == number).nonzero().unbind(1)
        out[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    return out
