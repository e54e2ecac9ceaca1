import json

import pytest
import torch
from PIL import Image

from emblema.core.errors import BadData
from emblema.data import catalog
from emblema.tasks import places, retrieval
from emblema.tasks.places import ranks
from emblema.tasks.retrieval import Retrieval, score
from emblema.testing import tiny_model
from emblema.testing.squares import squares


def unit(x):
    return torch.nn.functional.normalize(x, dim=-1)


def slow_ranks(z_image, z_text, pairs):
    """Full matrix in fp64, sorted: the definition."""
    s = z_image.double() @ z_text.double().T
    right = torch.zeros_like(s, dtype=torch.bool)
    right[pairs[:, 0], pairs[:, 1]] = True

    def of(s, right):
        out = []
        for row, mask in zip(s, right):
            best = row[mask].max() if mask.any() else None
            out.append(0 if best is None else 1 + int((row[~mask] >= best - places.TIE).sum()))
        return out

    return of(s, right), of(s.T, right.T)


def basis(*rows):
    """Unit vectors of the plane by angle in degrees."""
    a = torch.tensor(rows, dtype=torch.float32).deg2rad()
    return torch.stack([a.cos(), a.sin()], -1)


def test_ranks_by_hand_with_two_captions_an_image():
    # images at 0 and 90 degrees; captions of image 0 at 80 and 30, of image 1 at 85 and 10
    z_image, z_text = basis(0, 90), basis(80, 30, 85, 10)
    pairs = torch.tensor([(0, 0), (0, 1), (1, 2), (1, 3)])
    to_text, to_image = ranks(z_image, z_text, pairs)
    # image 0 (at 0): nearest is 10 (wrong), then 30 (right) -> place 2; image 1 (at 90): nearest 85 (right) -> 1
    assert to_text.tolist() == [2, 1]
    # captions: 80 is nearer to 90 (wrong) -> 2; 30 nearer to 0 (right) -> 1; 85 -> 1; 10 is nearer to 0 (wrong) -> 2
    assert to_image.tolist() == [2, 1, 1, 2]


def test_further_right_answers_are_no_competitors():
    z_image, z_text = basis(0, 90), basis(5, 10, 20, 15)
    pairs = torch.tensor([(0, 0), (0, 1), (0, 2), (1, 3)])
    assert ranks(z_image, z_text, pairs)[0].tolist() == [1, 2]  # image 1: 20 degrees belongs to image 0


def test_a_caption_of_several_images_is_right_for_all():
    z_image, z_text = basis(0, 10, 90), basis(12, 91)
    pairs = torch.tensor([(0, 0), (1, 0), (2, 1)])
    to_text, to_image = ranks(z_image, z_text, pairs)
    assert to_text.tolist() == [1, 1, 1] and to_image.tolist() == [1, 1]


def test_ties_count_against():
    same = torch.ones(3, 4) / 2
    to_text, to_image = ranks(same, same, torch.tensor([(0, 0), (1, 1), (2, 2)]))
    assert to_text.tolist() == to_image.tolist() == [3, 3, 3]


def test_a_query_without_a_right_answer_has_no_place():
    to_text, to_image = ranks(basis(0, 50), basis(0, 40), torch.tensor([(0, 0)]))
    assert to_text.tolist() == [1, 0] and to_image.tolist() == [1, 0]


@pytest.mark.parametrize("tile", [(512, 4096), (7, 5), (1, 1), (64, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_ranks_equal_the_full_matrix(seed, tile):
    g = torch.Generator().manual_seed(seed)
    z_image = unit(torch.randn(40, 16, generator=g))
    owner = torch.randint(40, (90,), generator=g)
    z_text = unit(z_image[owner] + 0.8 * torch.randn(90, 16, generator=g))
    z_text[50:60] = z_text[20:30]  # the same vector for captions of different images
    pairs = torch.cat([torch.stack([owner, torch.arange(90)], 1), torch.tensor([(3, 7), (4, 7), (3, 7)])])
    found = [r.tolist() for r in ranks(z_image, z_text, pairs, tile)]
    assert found == list(slow_ranks(z_image, z_text, pairs))


def paired(noise, seed=0, images=60, captions=200, dim=64):
    g = torch.Generator().manual_seed(seed)
    z_image = unit(torch.randn(images, dim, generator=g))
    owner = torch.randint(images, (captions,), generator=g)
    z_text = unit(z_image[owner] + noise * unit(torch.randn(captions, dim, generator=g)))
    return z_image, z_text, torch.stack([owner, torch.arange(captions)], 1)


@pytest.mark.parametrize("noise", [0.5, 2.0, 4.0, 20.0])
@pytest.mark.parametrize("seed", range(3))
def test_screening_in_bf16_gives_the_same_places(noise, seed):
    z_image, z_text, pairs = paired(noise, seed)
    z_text[20:30] = z_text[10:20]  # ties with the right answer are what rounding would decide
    found = [r.tolist() for r in ranks(z_image, z_text, pairs, (32, 50), screen=True)]
    assert found == list(slow_ranks(z_image, z_text, pairs))


@pytest.mark.parametrize("noise", [1.0, 2.0, 20.0])
def test_what_is_sifted_from_a_tile_in_bf16(monkeypatch, noise):
    a, b, pairs = paired(noise, images=200, captions=200)
    right = (a[pairs[:, 0]] * b).sum(1) - 1e-6
    bars = torch.full((200, 1), torch.inf).scatter_reduce(0, pairs[:, :1], right[:, None], "amin"), right
    rough, error = (a.bfloat16() @ b.bfloat16().T).float(), places.rounding(a, b)
    monkeypatch.setattr(places, "CROWDED", 0.0)
    assert places.sifted(rough, a, b, *bars, error) is None  # the right answers are near their own bars
    monkeypatch.setattr(places, "CROWDED", 2.0)
    by_row, by_column = places.sifted(rough, a, b, *bars, error)
    assert torch.equal(by_row, (a @ b.T >= bars[0]).sum(1).float())
    assert torch.equal(by_column, (a @ b.T >= bars[1]).sum(0).float())


def test_what_rounding_to_bf16_moves_is_bounded():
    worst = torch.full((3, 1020), 2**-5 * (1 + 2**-8 * 0.999))  # every element rounds by nearly half a unit
    z = torch.randn(500, 512, generator=torch.Generator().manual_seed(0))
    for a, b, share in ((worst, worst, 0.9), (unit(z), unit(z), 0.1), (z, 3 * z[:7], 0.01)):
        moved = a.bfloat16().double() @ b.bfloat16().double().T - a.double() @ b.double().T
        assert share * places.rounding(a, b) < moved.abs().max() < places.rounding(a, b)


def test_nan_is_refused():
    z = torch.eye(3)
    z[1, 1] = torch.nan
    with pytest.raises(BadData, match="1 of 3 image embeddings are NaN"):
        ranks(z, torch.eye(3), torch.tensor([(0, 0)]))


def test_score_of_a_perfect_and_of_a_blind_model():
    z, pairs = torch.eye(20), torch.arange(20)[:, None].expand(-1, 2)
    perfect = score(z, z, pairs, resamples=20)
    assert perfect["rsum"].value == pytest.approx(600) and perfect["mean_recall"].value == pytest.approx(1)
    assert perfect["image_to_text_median_rank"] == (1, 1, 1)
    blind = score(torch.ones(20, 20) / 20**0.5, z, pairs, resamples=20)
    assert blind["image_to_text_R@10"].value == 0


def test_a_pool_is_a_mean_over_disjoint_parts(monkeypatch):
    monkeypatch.setitem(retrieval.POOLS, "1k", 10)
    g = torch.Generator().manual_seed(0)
    z = unit(torch.randn(25, 4, generator=g))
    z_text = unit(z + 0.5 * torch.randn(25, 4, generator=g))
    pairs = torch.arange(25)[:, None].expand(-1, 2)
    small, whole = score(z, z_text, pairs, "1k", 20), score(z, z_text, pairs, "all", 20)
    assert small["image_to_text_R@1"].value >= whole["image_to_text_R@1"].value
    pools = retrieval._pools(25, "1k")
    assert [len(p) for p in pools] == [10, 10] and len(torch.cat(pools).unique()) == 20
    with pytest.raises(BadData, match="pool 1k needs 10 images, the split has 4"):
        retrieval._pools(4, "1k")
    with pytest.raises(BadData, match="no pool 'x'"):
        retrieval._pools(4, "x")


def test_the_task_merges_captions_with_the_same_words():
    data, model = squares().split("test"), tiny_model(cache=False, precision="fp32")
    merged, apart = (Retrieval(resamples=10, merge=m).run(model, data) for m in (True, False))
    assert merged.sizes == {"images": 24, "captions": 4 + 24, "pairs": 48}
    assert apart.sizes == {"images": 24, "captions": 48, "pairs": 48}
    assert Retrieval().protocol(model, data, "test").hash != Retrieval(merge=False).protocol(model, data, "test").hash


def test_data_without_captions_teaches():
    data = squares().split("test")
    data.columns = {k: v for k, v in data.columns.items() if k not in ("text", "texts")}
    with pytest.raises(BadData, match="squares has no captions"):
        Retrieval().run(tiny_model(cache=False), data)


def test_pools_are_consecutive_and_named(monkeypatch):
    monkeypatch.setitem(retrieval.POOLS, "1k", 10)
    assert [p.tolist() for p in retrieval._pools(25, "1k")] == [list(range(10)), list(range(10, 20))]
    data, model = squares().split("test"), tiny_model(cache=False)
    assert Retrieval(pool="1k").protocol(model, data, "test").name == "retrieval-1k/squares/test"


def test_the_sum_of_recalls_has_an_interval_over_images():
    g = torch.Generator().manual_seed(0)
    z_image = unit(torch.randn(30, 6, generator=g))
    owner = torch.arange(90) % 30
    z_text = unit(z_image[owner] + 0.7 * torch.randn(90, 6, generator=g))
    pairs = torch.cat([torch.stack([owner, torch.arange(90)], 1), torch.tensor([(0, 5), (1, 5)])])  # one has 3 images
    found = score(z_image, z_text, pairs, resamples=300)
    recalls = [v.value for k, v in found.items() if "R@" in k]
    assert found["rsum"].value == pytest.approx(100 * sum(recalls))
    assert found["mean_recall"].value == pytest.approx(sum(recalls) / 6)
    assert found["rsum"].low < found["rsum"].value < found["rsum"].high
    assert found["mean_recall"].low == pytest.approx(found["rsum"].low / 600)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_an_index_beside_the_exact_ranking(kind):
    g = torch.Generator().manual_seed(0)
    z_image = unit(torch.randn(200, 16, generator=g))
    z_text = unit(z_image + 0.6 * torch.randn(200, 16, generator=g))
    pairs = torch.arange(200)[:, None].expand(-1, 2)
    found = retrieval.indexed(z_image, z_text, pairs, kind, 20)
    exact = score(z_image, z_text, pairs, resamples=20)
    for direction in ("image_to_text", "text_to_image"):
        share = found[f"index_{direction}_recall_of_exact"].value
        assert share == 1 if kind == "flat" else 0.2 < share <= 1
        if kind == "flat":
            for k in (1, 5, 10):
                ours = found[f"index_{direction}_R@{k}"].value
                assert ours == pytest.approx(exact[f"{direction}_R@{k}"].value)
    with pytest.raises(BadData, match="no index 'tree'"):
        retrieval.indexed(z_image, z_text, pairs, "tree")


def test_the_task_reports_an_index():
    data, model = squares().split("test"), tiny_model(cache=False, precision="fp32")
    found = Retrieval(resamples=5, index="flat").evaluate(model, data)
    assert found["metrics"]["index_image_to_text_recall_of_exact"]["value"] == 1
    assert found["notes"] == ["index: faiss flat; the other metrics are of the exact ranking"]


def test_languages_of_a_table(tmp_path):
    rows = [("red", "rot", "de"), ("red", "rouge", "fr"), ("blue", "blau", "de"), ("blue", "bleu", "fr")]
    for colour in ("red", "blue"):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{colour}.png")
    lines = [json.dumps({"image": f"{c}.png", "caption": t, "lang": code}) for c, t, code in rows]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    data, model = catalog.load(tmp_path / "mine.jsonl"), tiny_model(cache=False, precision="fp32")
    german = Retrieval(resamples=5, language="de").evaluate(model, data)
    assert german["sizes"] == {"images": 2, "captions": 2, "pairs": 2}
    assert german["protocol"]["name"] == "retrieval-de/mine/test"
    every = Retrieval(resamples=5, language="all").run(model, data)
    assert {"mean_recall/de", "rsum/fr"} <= set(every.metrics)
    mean = sum(every.metrics[f"rsum/{code}"].value for code in ("de", "fr")) / 2
    assert every.metrics["rsum"].value == pytest.approx(mean)
    with pytest.raises(BadData, match="no captions in ko; mine has de, fr"):
        Retrieval(language="ko").run(model, data)
    with pytest.raises(BadData, match="captions in one language only"):
        Retrieval(language="de").run(model, squares().split("test"))


def test_languages_of_the_bundled_concepts():
    emblems = catalog.load("emblems").split("val")
    known = [i for i, concept in enumerate(emblems.column("concept")) if concept][:30]
    part, captions = retrieval.translated(emblems.subset(known), "ko")
    assert len(part) == len(captions) > 0
    assert all(any("\uac00" <= letter <= "\ud7a3" for letter in c[0]) for c in captions)
    assert len(retrieval.languages(emblems, "all")) == 17
