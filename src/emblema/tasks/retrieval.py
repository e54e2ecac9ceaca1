"""Image-text retrieval: recall at k, both ways, and the median place of the best right answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from emblema.core.card import TaskCard
from emblema.core.errors import BadData
from emblema.data.catalog import FOLDER
from emblema.data.datasets import columns
from emblema.tasks import metrics
from emblema.tasks.base import Outcome, Task, column
from emblema.tasks.clips import vectors
from emblema.tasks.places import TIE, ranks
from emblema.tasks.statistics import Interval, Statistic, bootstrap, mean_of, median_of, over_seeds
from emblema.tasks.token_wise import score_ranks, token_scores

POOLS = {"all": None, "1k": 1000, "5k": 5000}


@dataclass(kw_only=True)
class Retrieval(Task):
    card = TaskCard(
        name="retrieval",
        title="Image-text retrieval",
        section="3.4 retrieval",
        metric="mean_recall",
        needs=("texts",),
    )
    pool: str = "all"  # "all": the whole split; "1k", "5k": mean over pools of so many images, in their order
    merge: bool = True  # captions with the same words are one caption, right for all of their images
    language: str = ""  # of the captions: one of the data's, some ("de,ja"), or "all"; default: those it comes with
    index: str = ""  # an approximate index (extra: index) beside the exact ranking: "flat", "ivf" or "hnsw"
    token_wise: bool = False  # late interaction of patches and words (FILIP) instead of one vector each
    resamples: int = 1000

    def run(self, model, data) -> Outcome:
        if not self.language:
            return self._run(model, data, own_captions(data))
        found = {code: self._run(model, *translated(data, code)) for code in languages(data, self.language)}
        first = next(iter(found.values()))
        if len(found) == 1:
            return first
        both = ("mean_recall", "rsum")
        means = {k: over_seeds([o.metrics[k].value for o in found.values()]) for k in both}
        means |= {f"{k}/{code}": o.metrics[k] for code, o in found.items() for k in both}
        table = [{"language": code} | {k: v.value for k, v in o.metrics.items()} for code, o in found.items()]
        notes = [f"means over {len(found)} languages, with t intervals over them", *first.notes]
        return Outcome(metrics=means, tables={"per_language": table}, sizes=first.sizes, notes=notes)

    def _run(self, model, data, captions: Sequence[Sequence[str]]) -> Outcome:
        own = [dict.fromkeys(t for t in texts if t) for texts in captions]
        flat = [(i, text) for i, texts in enumerate(own) for text in texts]
        if not flat:
            raise BadData(f"{data.card.name} has no captions, so there is nothing to retrieve by. Try zero-shot.")
        texts = list(dict.fromkeys(t for _, t in flat)) if self.merge else [t for _, t in flat]
        number = {t: j for j, t in enumerate(texts)}
        pairs = torch.tensor([(i, number[t] if self.merge else j) for j, (i, t) in enumerate(flat)])
        sizes = {"images": len(own), "captions": len(texts), "pairs": len(pairs)}
        if self.token_wise:
            return Outcome(metrics=self._by_tokens(model, data, texts, pairs), sizes=sizes)
        z_image, z_text = vectors(model, data), getattr(model, "text_features", model.embed_texts)(texts)
        found = score(z_image, z_text, pairs, self.pool, self.resamples)
        notes = []
        if self.index:
            found |= indexed(z_image, z_text, pairs, self.index, self.resamples)
            notes.append(f"index: faiss {self.index}; the other metrics are of the exact ranking")
        return Outcome(metrics=found, sizes=sizes, notes=notes)

    def _by_tokens(self, model, data, texts: list[str], pairs: Tensor) -> dict[str, Interval]:
        if self.pool != "all" or self.index:
            raise BadData(
                "token-wise similarity has no vectors to index or to deal into pools: take --pool all, no index"
            )
        s_image, s_text = token_scores(model, data, texts)
        rank = lambda to_text, to_image, own: score_ranks(to_text, to_image, own, TIE)
        return score(s_image, s_text.T, pairs, resamples=self.resamples, rank=rank)

    def variant(self) -> str:
        parts = (self.pool if self.pool != "all" else "", self.language, "token-wise" * self.token_wise)
        return "-".join(part for part in parts if part)

    def options(self) -> dict:
        more = {"token_wise": True} if self.token_wise else {}
        return {
            "pool": self.pool,
            "merge": self.merge,
            "language": self.language,
            "index": self.index,
            "tie": TIE,
        } | more


def score(z_image, z_text, pairs, pool: str = "all", resamples: int = 1000, rank=ranks) -> dict[str, Interval]:
    """All retrieval metrics with bootstrap intervals.

    Those of one direction resample its queries. `rsum` and `mean_recall` have both directions in them, so they resample
    images, and a caption counts as often as its images on average.
    """
    to_text, to_image, owners, images, texts = [], [], [], 0, 0
    for part in _pools(len(z_image), pool):
        place = torch.full((len(z_image),), -1)
        place[part] = torch.arange(len(part))
        inside = pairs[place[pairs[:, 0]] >= 0]
        chosen, where = inside[:, 1].unique(return_inverse=True)
        own = torch.stack([place[inside[:, 0]], where], 1)
        found = rank(z_image[part], z_text[chosen], own)
        to_text.append(found[0])
        to_image.append(found[1])
        owners.append(own.unique(dim=0) + torch.tensor([images, texts]))
        images, texts = images + len(part), texts + len(chosen)
    image_rank, text_rank = torch.cat(to_text), torch.cat(to_image)
    out: dict[str, Interval] = {}
    for direction, found in (
        ("image_to_text", image_rank[image_rank > 0]),
        ("text_to_image", text_rank[text_rank > 0]),
    ):
        for k in (1, 5, 10):
            hit = metrics.top(found, k)
            out[f"{direction}_R@{k}"] = bootstrap(mean_of(hit), len(hit), resamples=resamples)
        out[f"{direction}_median_rank"] = bootstrap(
            median_of(found), len(found), method="percentile", resamples=resamples
        )
    recalls = _sum_of_recalls(image_rank, text_rank, torch.cat(owners))
    total = bootstrap(lambda w: 100 * recalls(w), images, resamples=resamples)
    return {"mean_recall": Interval(*(v / 600 for v in total)), "rsum": total, **out}


def _sum_of_recalls(image_rank: Tensor, text_rank: Tensor, owners: Tensor) -> Statistic:
    """R@1 + R@5 + R@10 of both directions as a function of how often each image was drawn; `owners` are the pairs."""
    hits = lambda rank: sum((metrics.top(rank, k) for k in (1, 5, 10)), torch.zeros(())) * (rank > 0)  # [N]
    of_image, asked = hits(image_rank), (image_rank > 0).double()
    of_text = hits(text_rank)
    image, text = owners.unbind(1)
    share = 1 / torch.bincount(text, minlength=len(text_rank)).clamp(min=1).double()  # of one image in its caption
    right = torch.zeros(len(image_rank), dtype=torch.float64).index_add_(0, image, (of_text * share)[text])
    held = torch.zeros(len(image_rank), dtype=torch.float64).index_add_(0, image, share[text])
    return lambda w: (w @ of_image) / (w @ asked).clamp(min=1) + (w @ right) / (w @ held).clamp(min=1e-9)


def _pools(n: int, pool: str) -> list[Tensor]:
    """Consecutive images, as COCO's five folds of 1,000 are; what is left over is not used."""
    if pool not in POOLS:
        raise BadData(f"no pool {pool!r}: choose one of {', '.join(POOLS)}")
    size = POOLS[pool]
    if size is None:
        return [torch.arange(n)]
    if n < size:
        raise BadData(f"pool {pool} needs {size} images, the split has {n}: use --pool all")
    return [torch.arange(i * size, (i + 1) * size) for i in range(n // size)]


def own_captions(data) -> list[list[str]]:
    first, more = columns(data, "text", "texts")
    return [[a or "", *(b or ())] for a, b in zip(first, more)]


def languages(data, wanted: str) -> list[str]:
    """The codes that `wanted` names, of those that the data have."""
    known = sorted({v for v in column(data, "lang") if v}) if "lang" in getattr(data, "columns", ()) else []
    if not known and "concept" in getattr(data, "columns", ()):
        known = sorted({code for of in labels_by_language().values() for code in of})
    codes = known if wanted == "all" else [c for c in (c.strip() for c in wanted.split(",")) if c]
    if not known:
        raise BadData(f"{data.card.name} has captions in one language only: give its table a column `lang`")
    if missing := [c for c in codes if c not in known]:
        raise BadData(f"no captions in {', '.join(missing)}; {data.card.name} has {', '.join(known)}")
    return codes


def translated(data, code: str):
    """(records, captions) in one language: rows that say so in `lang`, or translated labels of concepts."""
    if "lang" in data.columns:
        part = data.where(lang=code)
        return part, own_captions(part)
    words = labels_by_language()
    concepts = column(data, "concept")
    rows = [i for i, concept in enumerate(concepts) if code in words.get(concept, {})]
    return data.subset(rows), [[words[concepts[i]][code]] for i in rows]


@cache
def labels_by_language() -> dict[str, dict[str, str]]:
    """{concept: {language: label}} of the emoji, bundled."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(FOLDER / "multilingual.parquet", columns=["concept", "lang", "label"])
    found: dict[str, dict[str, str]] = {}
    for concept, code, label in zip(*(table.column(c).to_pylist() for c in ("concept", "lang", "label"))):
        found.setdefault(concept, {})[code] = label
    return found


def indexed(z_image: Tensor, z_text: Tensor, pairs: Tensor, kind: str, resamples: int = 1000) -> dict[str, Interval]:
    """What an index finds: R@k of its lists, and which share of the exact ten best is among its ten."""
    out = {}
    for direction, queries, base, own in (
        ("image_to_text", z_image, z_text, pairs),
        ("text_to_image", z_text, z_image, pairs.flip(1)),
    ):
        k = min(10, len(base))
        found = torch.from_numpy(_index(base, kind).search(queries.float().numpy(), k)[1])  # [N, k]
        exact = torch.cat([(q @ base.T).topk(k).indices for q in queries.split(512)])
        shared = (found[:, :, None] == exact[:, None, :]).any(2).double().mean(1)
        out[f"index_{direction}_recall_of_exact"] = bootstrap(mean_of(shared), len(shared), resamples=resamples)
        right = {(int(a), int(b)) for a, b in own}
        hit = torch.tensor([[(i, int(j)) in right for j in row] for i, row in enumerate(found.tolist())])
        for top in (1, 5, 10):
            best = hit[:, :top].any(1).double()
            out[f"index_{direction}_R@{top}"] = bootstrap(mean_of(best), len(best), resamples=resamples)
    return out


def _index(base: Tensor, kind: str):
    try:
        import faiss
    except ImportError:
        raise BadData("an index needs faiss: pip install 'emblema[index]'") from None
    width, vectors_ = base.shape[1], base.float().contiguous().numpy()
    if kind == "flat":
        index = faiss.IndexFlatIP(width)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = 64
    elif kind == "ivf":
        cells = max(1, min(4096, round(4 * len(base) ** 0.5), len(base) // 39 or 1))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = max(1, cells // 16)
        index.train(vectors_)
    else:
        raise BadData(f'no index {kind!r}: choose "flat", "ivf" or "hnsw"')
    index.add(vectors_)
    return index
