import math

import numpy as np
import pytest
import torch
from scipy import stats

from emblema.tasks import metrics, statistics


def skewed(n=60):
    return torch.from_numpy(np.random.default_rng(3).exponential(size=n))


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_bootstrap_of_the_mean_equals_scipy(method):
    x = skewed()
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
