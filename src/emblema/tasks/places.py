"""The place of the best right answer of each query, counted tile by tile: what retrieval is scored by.

R@k needs no sorted list and no full matrix of similarities: it needs to know how many wrong answers score at
least as high as the best right one. One tile of similarities serves both directions and is thrown away, so
memory is a tile for each thread, whatever the size of the pool. An image may have several captions, a caption
several images. Where the hardware multiplies in bf16, a tile is computed so, and the few products that rounding
could have carried over their bar again in fp32: the places are those of fp32.
"""

from __future__ import annotations

from threading import Lock

import torch
from torch import Tensor

from emblema.engine.precision import has_bf16
from emblema.engine.threads import spread
from emblema.tasks import metrics

TIE = 1e-6  # similarities of unit vectors this close are equal: fp32 does not tell them apart
CROWDED = 0.01  # of a tile near the bars: then screening does not pay


def ranks(
    z_image: Tensor,
    z_text: Tensor,
    pairs: Tensor,
    tile: tuple[int, int] = (1024, 1024),
    screen: bool | None = None,
):
    """Place, from 1, of the best right answer of each query, both directions: [N], [M].

    `z_image` [N, D] and `z_text` [M, D] are unit rows; `pairs` [P, 2] says which (image, text) belong together.
    Wrong answers within `TIE` of the best right one count against it; further right answers never count.
    A query without a right answer gets place 0. `screen`: tiles are computed in bf16 first (default: where the hardware
    has it).
    """
    metrics.refuse_nan(z_image, "image embeddings")
    metrics.refuse_nan(z_text, "text embeddings")
    z_image, z_text = z_image.float(), z_text.float()
    number = (pairs[:, 1] * len(z_image) + pairs[:, 0]).unique()  # each pair once, in the order of the texts
    image, text = number % len(z_image), number // len(z_image)
    right = torch.cat([_dots(z_image, i, z_text, t) for i, t in zip(image.split(4096), text.split(4096))])  # [P]
    bar_image = _best(right, image, len(z_image)) - TIE  # [N] what a wrong answer must reach
    bar_text = _best(right, text, len(z_text)) - TIE  # [M]
    above_image, above_text = torch.zeros(len(z_image)), torch.zeros(len(z_text))
    screen = has_bf16() if screen is None else screen
    rough_image, rough_text = (z_image.bfloat16(), z_text.bfloat16()) if screen else (z_image, z_text)
    error = rounding(z_image, z_text) if screen else 0.0
    adding = Lock()

    def count(t: slice) -> None:
        own = slice(*torch.searchsorted(text, torch.tensor([t.start, t.stop])).tolist())  # pairs of these texts
        for i in _slices(len(z_image), tile[0]):
            here = (image[own] >= i.start) & (image[own] < i.stop)
            pair = image[own][here] - i.start, text[own][here] - t.start  # right answers, which are no competitors
            a, b, bars = z_image[i], z_text[t], (bar_image[i, None], bar_text[t])
            found = sifted(_without(pair, rough_image[i] @ rough_text[t].T), a, b, *bars, error) if screen else None
            by_image, by_text = found or _reached(_without(pair, a @ b.T), *bars)
            with adding:
                above_image[i] += by_image
            above_text[t] += by_text

    spread(count, _slices(len(z_text), tile[1]))
    return (
        torch.where(bar_image.isinf(), 0, above_image.long() + 1),
        torch.where(bar_text.isinf(), 0, above_text.long() + 1),
    )


def rounding(a: Tensor, b: Tensor) -> float:
    """The most by which a product of a row of `a` and a row of `b` [., D] moves when both are rounded to bf16."""
    longest = lambda x: max(float(part.norm(dim=1).max()) for part in x.split(4096))
    moved = lambda x: max(float((part - part.bfloat16().float()).norm(dim=1).max()) for part in x.split(4096))
    size_a, size_b = longest(a), longest(b)
    # |a' b' - a b| <= |a' - a| |b'| + |a| |b' - b|, and the sums are fp32
    return moved(a) * size_b * (1 + 2**-8) + size_a * moved(b) + a.shape[1] * 2**-23 * size_a * size_b


def sifted(
    rough: Tensor, a: Tensor, b: Tensor, bar_a: Tensor, bar_b: Tensor, error: float
) -> tuple[Tensor, Tensor] | None:
    """How many products of a tile reach their row's bar [n], and their column's [m]; None where too many are near.

    `rough` [n, m] is a b^T in bf16, of `a` [n, D] and `b` [m, D]; `error` bounds what rounding these did (`rounding`).
    `bar_a` [n, 1], `bar_b` [m].
    """
    slack_a, slack_b = (error + 2**-7 * (bar.abs() + error) for bar in (bar_a, bar_b))  # 2^-8 rounds what comes out
    sure = _reached(rough, bar_a + slack_a, bar_b + slack_b)
    near_a, near_b = (m - s for m, s in zip(_reached(rough, bar_a - slack_a, bar_b - slack_b), sure))
    if near_a.sum() + near_b.sum() > CROWDED * rough.numel():
        return None
    rows, columns = near_a.nonzero()[:, 0], near_b.nonzero()[:, 0]
    sure[0].index_add_(0, rows, _near(rough.index_select(0, rows), rows, bar_a, slack_a, a, b))
    sure[1].index_add_(
        0, columns, _near(rough.index_select(1, columns).T, columns, bar_b[:, None], slack_b[:, None], b, a)
    )
    return sure


def _near(rough: Tensor, rows: Tensor, bar: Tensor, slack: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """How many of the products that are near their row's bar reach it in fp32: [r] for `rough` [r, m], some `rows` of x
    [n, D] with y [m, D]; `bar` and `slack` are [n, 1]."""
    bar, slack = bar[rows], slack[rows]
    i, j = ((rough >= bar - slack) & (rough < bar + slack)).nonzero().unbind(1)
    reach = _dots(x, rows[i], y, j) >= bar[i, 0]
    return torch.zeros(len(rows)).index_add_(0, i, reach.float())


def _reached(score: Tensor, bar_a: Tensor, bar_b: Tensor) -> tuple[Tensor, Tensor]:
    """How many of each row reach `bar_a` [n, 1], and of each column `bar_b` [m]."""
    # comparisons as floats: their sums are matrix products, far quicker than sums of bools
    above, (n, m) = torch.empty_like(score), score.shape
    by_row = torch.ge(score, bar_a, out=above) @ torch.ones(m)
    return by_row, torch.ones(n) @ torch.ge(score, bar_b, out=above)


def _without(pair: tuple[Tensor, Tensor], score: Tensor) -> Tensor:
    score = score.float()
    score[pair] = -torch.inf
    return score


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _dots(a: Tensor, i: Tensor, b: Tensor, j: Tensor) -> Tensor:
    """Products of rows i of a and rows j of b; `index_select` copies rows, indexing would gather their elements."""
    return (a.index_select(0, i) * b.index_select(0, j)).sum(-1)


def _best(right: Tensor, owner: Tensor, count: int) -> Tensor:
    return torch.full((count,), torch.inf).scatter_reduce_(0, owner, right, "amax", include_self=False)
