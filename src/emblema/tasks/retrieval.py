"""Image-text retrieval: the place of the best right answer, counted tile by tile.

R@k needs no sorted list and no full matrix of similarities: it needs to know how many wrong answers score at
least as high as the best right one. One tile of similarities serves both directions and is thrown away, so
memory is one tile, whatever the size of the pool. An image may have several captions, a caption several images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emblema.core.card import TaskCard
from emblema.core.errors import BadData
from emblema.tasks import metrics
from emblema.tasks.base import Outcome, Task, column
from emblema.tasks.statistics import Interval, bootstrap, mean_of, median_of

TIE = 1e-6  # similarities of unit vectors this close are equal: fp32 does not tell them apart
POOLS = {"all": None, "1k": 1000, "5k": 5000}


def ranks(z_image: Tensor, z_text: Tensor, pairs: Tensor, tile: tuple[int, int] = (512, 4096)):
    """Place, from 1, of the best right answer of each query, both directions: [N], [M].

    `z_image` [N, D] and `z_text` [M, D] are unit rows; `pairs` [P, 2] says which (image, text) belong together.
    Wrong answers within `TIE` of the best right one count against it; further right answers never count.
    A query without a right answer gets place 0.
    """
    metrics.refuse_nan(z_image, "image embeddings")
    metrics.refuse_nan(z_text, "text embeddings")
    z_image, z_text, (image, text) = z_image.float(), z_text.float(), pairs.unique(dim=0).unbind(1)
    right = torch.cat([_dot(z_image[i], z_text[t]) for i, t in zip(image.split(65536), text.split(65536))])  # [P]
    bar_image = _best(right, image, len(z_image)) - TIE  # [N] what a wrong answer must reach
    bar_text = _best(right, text, len(z_text)) - TIE  # [M]
    above_image, above_text = torch.zeros(len(z_image)), torch.zeros(len(z_text))
    ones = torch.ones(max(tile))
    scores, reached = torch.empty(2, min(tile[0], len(z_image)) * min(tile[1], len(z_text)))
    for r in range(0, len(z_image), tile[0]):
        rows = slice(r, min(r + tile[0], len(z_image)))
        for c in range(0, len(z_text), tile[1]):
            columns = slice(c, min(c + tile[1], len(z_text)))
            n, m = rows.stop - r, columns.stop - c
            score, above = scores[: n * m].view(n, m), reached[: n * m].view(n, m)
            torch.mm(z_image[rows], z_text[columns].T, out=score)
            # comparisons as floats: their sums are matrix products, far quicker than sums of bools
            above_image[rows] += torch.ge(score, bar_image[rows, None], out=above) @ ones[:m]
            above_text[columns] += ones[:n] @ torch.ge(score, bar_text[columns], out=above)
    # of these, the right answers are no competitors
    above_image.index_add_(0, image, -(right >= bar_image[image]).float())
    above_text.index_add_(0, text, -(right >= bar_text[text]).float())
    return (
        torch.where(bar_image.isinf(), 0, above_image.long() + 1),
        torch.where(bar_text.isinf(), 0, above_text.long() + 1),
    )


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


def _best(right: Tensor, owner: Tensor, count: int) -> Tensor:
    return torch.full((count,), torch.inf).scatter_reduce_(0, owner, right, "amax", include_self=False)


@dataclass(kw_only=True)
class Retrieval(Task):
    card = TaskCard(
        name="retrieval",
        title="Image-text retrieval",
        section="3.4 retrieval",
        metric="mean_recall",
        needs=("texts",),
    )
    pool: str = "all"  # "all": the whole split; "1k", "5k": mean over disjoint pools of so many images
    merge: bool = True  # captions with the same words are one caption, right for all of their images
    resamples: int = 1000

    def run(self, model, data) -> Outcome:
        first, more = column(data, "text"), column(data, "texts")
        own = [dict.fromkeys([t for t in (a, *(b or ())) if t]) for a, b in zip(first, more)]
        captions = [(i, text) for i, texts in enumerate(own) for text in texts]
        if not captions:
            raise BadData(f"{data.card.name} has no captions, so there is nothing to retrieve by. Try zero-shot.")
        texts = list(dict.fromkeys(t for _, t in captions)) if self.merge else [t for _, t in captions]
        index = {t: j for j, t in enumerate(texts)}
        pairs = torch.tensor([(i, index[t] if self.merge else j) for j, (i, t) in enumerate(captions)])
        z_image, z_text = model.features(data), model.text_features(texts)
        found = score(z_image, z_text, pairs, self.pool, self.resamples)
        return Outcome(metrics=found, sizes={"images": len(z_image), "captions": len(texts), "pairs": len(pairs)})

    def options(self) -> dict:
        return {"pool": self.pool, "merge": self.merge, "tie": TIE}


def score(z_image, z_text, pairs, pool: str = "all", resamples: int = 1000) -> dict[str, Interval]:
    """All retrieval metrics with bootstrap intervals over the queries."""
    to_text, to_image = [], []
    for images in _pools(len(z_image), pool):
        place = torch.full((len(z_image),), -1)
        place[images] = torch.arange(len(images))
        inside = pairs[place[pairs[:, 0]] >= 0]
        texts, where = inside[:, 1].unique(return_inverse=True)
        own = torch.stack([place[inside[:, 0]], where], 1)
        found = ranks(z_image[images], z_text[texts], own)
        to_text.append(found[0][found[0] > 0])
        to_image.append(found[1][found[1] > 0])
    out: dict[str, Interval] = {}
    for direction, found in (("image_to_text", torch.cat(to_text)), ("text_to_image", torch.cat(to_image))):
        for k in (1, 5, 10):
            hit = metrics.top(found, k)
            out[f"{direction}_R@{k}"] = bootstrap(mean_of(hit), len(hit), resamples=resamples)
        out[f"{direction}_median_rank"] = bootstrap(median_of(found), len(found), resamples=resamples)
    total = metrics.rsum({k: v.value for k, v in out.items() if "R@" in k})
    none = float("nan")
    return {"mean_recall": Interval(total / 600, none, none), "rsum": Interval(total, none, none), **out}


def _pools(n: int, pool: str) -> list[Tensor]:
    if pool not in POOLS:
        raise BadData(f"no pool {pool!r}: choose one of {', '.join(POOLS)}")
    size = POOLS[pool]
    if size is None:
        return [torch.arange(n)]
    if n < size:
        raise BadData(f"pool {pool} needs {size} images, the split has {n}: use --pool all")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return [order[i * size : (i + 1) * size].sort().values for i in range(n // size)]
