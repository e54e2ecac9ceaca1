import math

import numpy as np
import pytest
from scipy import stats

from emblema.core import intervals


@pytest.mark.parametrize("n", [2, 3, 9, 27])
def test_paired_differences_equal_scipy(n):
    ours, theirs = np.random.default_rng(n).normal([[0.6], [0.55]], 0.05, (2, n)).tolist()
    test = stats.ttest_rel(ours, theirs)
    low, high = test.confidence_interval(0.95)
    found = intervals.paired(ours, theirs)
    assert found == pytest.approx((np.mean(ours) - np.mean(theirs), low, high))
    assert intervals.paired_p(ours, theirs) == pytest.approx(test.pvalue, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("freedom", [1, 2, 5, 26])
@pytest.mark.parametrize("t", [0.0, 0.3, 2.1, 12.7])
def test_tails_equal_scipy(t, freedom):
    assert intervals.t_tail(t, freedom) == pytest.approx(stats.t.sf(t, freedom), rel=1e-6, abs=1e-12)


def test_pairs_must_be_pairs_and_need_spread():
    with pytest.raises(ValueError):
        intervals.paired([1, 2], [1])
    assert math.isnan(intervals.paired_p([1.0], [2.0])) and math.isnan(intervals.paired_p([1.0, 2.0], [0.0, 1.0]))


def by_definition(p):
    """Holm: the k-th smallest of m is compared with alpha / (m - k); adjusted = the largest alpha that still fails."""
    order = np.argsort(p)
    out = np.empty(len(p))
    for place, i in enumerate(order):
        out[i] = min(1, max((len(p) - k) * p[order[k]] for k in range(place + 1)))
    return out


def test_holm_against_its_definition_and_scipys_bound():
    for seed in range(5):
        p = np.random.default_rng(seed).random(7) ** 3
        assert intervals.holm(p.tolist()) == pytest.approx(by_definition(p).tolist())
        assert all(h >= b - 1e-12 for h, b in zip(intervals.holm(p.tolist()), stats.false_discovery_control(p)))
    assert intervals.holm([0.01, math.nan, 0.04])[::2] == pytest.approx([0.02, 0.04])
    assert math.isnan(intervals.holm([0.01, math.nan])[1])


def test_harmonic_means_of_published_averages():
    for base, novel, h in ((82.69, 63.22, 71.66), (80.47, 71.69, 75.83), (80.73, 73.6, 77.00)):
        assert round(intervals.harmonic(base, novel), 2) == h
        assert intervals.harmonic(base, novel) == pytest.approx(stats.hmean([base, novel]))
    assert intervals.harmonic(0, 0) == 0
