import math

import numpy as np
import pytest
import torch
from scipy import stats

from emblema.tasks import metrics, statistics


def skewed(n=60):
    return torch.from_numpy(np.random.default_rng(3).exponential(size=n))


@pytest.mark.parametrize(("method", "n"), [("percentile", 60), ("bca", 60), ("bca", 1000)])
def test_bootstrap_of_the_mean_equals_scipy(method, n):
    x = skewed(n)
    ours = statistics.bootstrap(statistics.mean_of(x), len(x), method=method, resamples=20000)
    their = stats.bootstrap((x.numpy(),), np.mean, n_resamples=20000, method=method, rng=0).confidence_interval
    width = their.high - their.low
    assert ours.value == pytest.approx(float(x.mean()))
    assert abs(ours.low - their.low) < 0.02 * width and abs(ours.high - their.high) < 0.02 * width


def test_bca_differs_from_percentile_where_the_data_is_skewed():
    x = skewed(25)
    methods = ("percentile", "bca")
    percentile, bca = (statistics.bootstrap(statistics.mean_of(x), 25, method=m, resamples=4000) for m in methods)
    assert bca.high > percentile.high and bca.low > percentile.low


def test_coverage_of_the_percentile_interval():
    rng, inside = np.random.default_rng(0), 0
    for trial in range(100):
        x = torch.from_numpy((rng.random(100) < 0.7).astype(float))
        interval = statistics.bootstrap(statistics.mean_of(x), 100, resamples=400, seed=trial)
        inside += interval.low <= 0.7 <= interval.high
    assert inside >= 88


def weights_of(index, n):
    return torch.bincount(torch.tensor(index), minlength=n).double()[None]


def test_statistics_of_weights_equal_statistics_of_the_drawn():
    g = torch.Generator().manual_seed(1)
    labels, correct = torch.randint(5, (30,), generator=g), torch.randint(2, (30,), generator=g).double()
    confidence, rank = torch.rand(30, generator=g), torch.randint(1, 20, (30,), generator=g)
    for _ in range(20):
        index = torch.randint(30, (30,), generator=g)
        w = weights_of(index.tolist(), 30)
        per_class = statistics.mean_per_class_of(correct, labels, 7)(w)
        assert float(per_class) == pytest.approx(metrics.mean_per_class(correct[index], labels[index], 7))
        bins = metrics.calibration_bins(confidence)
        ece = statistics.ece_of(confidence, correct, bins)(w)
        assert float(ece) == pytest.approx(metrics.ece(confidence[index], correct[index]))
        assert float(statistics.median_of(rank)(w)) == metrics.median_rank(rank[index])


def test_one_image_has_no_interval_and_no_spread_is_a_point():
    assert math.isnan(statistics.bootstrap(statistics.mean_of(torch.ones(1)), 1).low)
    point = statistics.bootstrap(statistics.mean_of(torch.ones(9)), 9, method="bca", resamples=50)
    assert point == (1, 1, 1)


def test_same_seed_same_interval():
    one, two, other = (statistics.bootstrap(statistics.mean_of(skewed()), 60, seed=s) for s in (0, 0, 1))
    assert one == two != other


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 30])
@pytest.mark.parametrize("p", [0.025, 0.9, 0.975, 0.995])
def test_t_quantile_equals_scipy(p, freedom):
    assert statistics.t_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-6)


def test_interval_over_seeds_equals_scipy():
    values = [0.61, 0.64, 0.58]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert statistics.over_seeds(values) == pytest.approx((np.mean(values), low, high))
    assert math.isnan(statistics.over_seeds([0.5]).high)


def test_strata_keep_their_sizes():
    labels = torch.tensor([2, 0, 0, 1, 2, 2])
    drawn = statistics._drawn(200, 6, labels, torch.Generator().manual_seed(0))
    assert all(torch.equal(labels[row].bincount(), torch.tensor([2, 1, 3])) for row in drawn)
    assert set(drawn.unique().tolist()) == set(range(6))


def test_mean_per_class_of_small_classes_lies_within_its_interval():
    labels = torch.arange(100).repeat(2)
    correct = (labels < 5).double()  # five classes always right, the others never: no spread within classes
    statistic = statistics.mean_per_class_of(correct, labels, 100)
    assert statistics.bootstrap(statistic, 200, strata=labels) == pytest.approx((0.05, 0.05, 0.05))
    free = statistics.bootstrap(statistic, 200)
    assert free.high - free.low > 0.01


def two_systems(n=200, seed=4):
    rng = np.random.default_rng(seed)
    ours, theirs = rng.random(n) < 0.75, rng.random(n) < 0.65
    return torch.from_numpy(ours), torch.from_numpy(theirs)


def test_paired_bootstrap_equals_scipy_and_is_narrower_than_two_intervals():
    ours, theirs = two_systems()
    theirs = torch.where(torch.arange(200) < 150, ours, theirs)  # systems agree on most images
    found = statistics.paired_bootstrap(
        statistics.mean_of(ours), statistics.mean_of(theirs), 200, resamples=10000, method="bca"
    )
    their = stats.bootstrap(
        (ours.double().numpy(), theirs.double().numpy()), lambda a, b, axis: a.mean(axis) - b.mean(axis), paired=True,
        n_resamples=10000, vectorized=True, rng=0,
    ).confidence_interval  # fmt: skip
    width = their.high - their.low
    assert abs(found.low - their.low) < 0.06 * width and abs(found.high - their.high) < 0.06 * width
    alone = statistics.bootstrap(statistics.mean_of(ours), 200)
    assert found.high - found.low < alone.high - alone.low


@pytest.mark.parametrize("seed", range(4))
def test_mcnemar_equals_the_binomial_test_of_scipy(seed):
    ours, theirs = two_systems(seed=seed)
    k, n = int((ours & ~theirs).sum()), int((ours ^ theirs).sum())
    assert statistics.mcnemar(ours, theirs) == pytest.approx(stats.binomtest(k, n).pvalue, rel=1e-9)
    assert statistics.mcnemar(ours, ours) == 1


def test_permutation_test_equals_scipy():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 10)))
    mean = lambda a, b, axis: (a - b).mean(axis)
    exact = stats.permutation_test(x.numpy(), mean, permutation_type="samples", vectorized=True, n_resamples=9999)
    assert statistics.permutation_p(*x) == pytest.approx(exact.pvalue)
    y = torch.from_numpy(np.random.default_rng(1).normal(0.12, 1, size=(2, 150)))
    y[1] -= 0.24
    drawn = stats.permutation_test(
        y.numpy(), mean, permutation_type="samples", vectorized=True, n_resamples=9999, rng=0
    )
    assert statistics.permutation_p(*y) == pytest.approx(drawn.pvalue, abs=0.01)


def test_ranks_equal_scipy():
    scores = torch.from_numpy(np.random.default_rng(2).integers(0, 5, (6, 9)).astype(float))  # with ties
    their = stats.rankdata(-scores.numpy(), axis=0).mean(1)
    found = statistics.rank_intervals(scores)
    assert [i.value for i in found] == pytest.approx(list(their))
    assert all(1 <= i.low <= i.value <= i.high <= 6 for i in found)
