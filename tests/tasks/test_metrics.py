import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score, top_k_accuracy_score
from torchmetrics.classification import MulticlassCalibrationError

from emblema.core.errors import BadData
from emblema.tasks import metrics


@pytest.fixture
def scored():
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 7, generator=g)
    labels = torch.randint(6, (200,), generator=g)  # class 6 has no sample
    scores[torch.arange(200), labels] += 0.8
    return scores, labels


@pytest.mark.parametrize("k", [1, 3, 5])
def test_top_k_equals_scikit_learn(scored, k):
    scores, labels = scored
    ours = metrics.top(metrics.ranks(scores, labels), k).mean()
    theirs = top_k_accuracy_score(labels, scores.numpy(), k=k, labels=range(7))
    assert float(ours) == pytest.approx(theirs)


def test_rank_equals_a_slow_loop(scored):
    scores, labels = scored
    slow = [1 + sum(s > row[y] for i, s in enumerate(row) if i != y) for row, y in zip(scores.tolist(), labels)]
    assert metrics.ranks(scores, labels).tolist() == slow


def test_ties_count_against():
    flat = torch.zeros(3, 4)
    assert metrics.ranks(flat, torch.tensor([0, 1, 3])).tolist() == [4, 4, 4]
    two = torch.tensor([[1.0, 1.0, 0.0]])
    assert metrics.ranks(two, torch.tensor([0])).tolist() == [2]
    assert metrics.ranks(two, torch.tensor([2])).tolist() == [3]


def test_infinite_scores_are_places_too():
    scores = torch.tensor([[float("inf"), 0.0, -float("inf")]])
    assert [int(metrics.ranks(scores, torch.tensor([c]))) for c in range(3)] == [1, 2, 3]


def test_nan_and_impossible_labels_are_refused():
    scores = torch.zeros(4, 3)
    scores[1, 2] = float("nan")
    with pytest.raises(BadData, match="1 of 4 scores are NaN"):
        metrics.ranks(scores, torch.zeros(4, dtype=torch.long))
    with pytest.raises(BadData, match="labels go from 0 to 3, but there are 3 classes"):
        metrics.ranks(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(BadData, match="confidences are NaN"):
        metrics.ece(torch.tensor([float("nan")]), torch.tensor([1.0]))


def test_mean_per_class_ignores_absent_classes(scored):
    scores, labels = scored
    correct = metrics.top(metrics.ranks(scores, labels), 1)
    theirs = balanced_accuracy_score(labels, scores.argmax(1))
    assert metrics.mean_per_class(correct, labels, 7) == pytest.approx(theirs)
    accuracy, count = metrics.per_class(correct, labels, 7)
    assert torch.isnan(accuracy[6]) and count[6] == 0 and not torch.isnan(accuracy[:6]).any()


def test_ece_equals_torchmetrics(scored):
    scores, labels = scored
    probability = scores.softmax(1)
    confidence, said = probability.max(1)
    theirs = MulticlassCalibrationError(7, n_bins=15, norm="l1")(probability, labels)
    assert metrics.ece(confidence, said == labels) == pytest.approx(float(theirs), abs=1e-6)


def test_ece_by_hand():
    # bins of 1/15: 0.1 -> (1/15, 2/15], 0.95 twice -> (14/15, 1]
    confidence, correct = torch.tensor([0.1, 0.95, 0.95]), torch.tensor([0.0, 1.0, 0.0])
    assert metrics.ece(confidence, correct) == pytest.approx((0.1 + abs(1 - 1.9)) / 3, abs=1e-6)


def test_bins_are_closed_above():
    edge = torch.linspace(0, 1, 16, dtype=torch.float64)
    assert metrics.calibration_bins(edge).tolist() == [0, *range(15)]


def test_recall_and_median():
    rank = torch.tensor([1, 2, 6, 11])
    assert [metrics.recall(rank, k) for k in (1, 5, 10)] == [0.25, 0.5, 0.75]
    assert metrics.median_rank(rank) == np.median(rank.numpy()) == 4.0
    assert metrics.median_rank(rank[:3]) == 2.0
    assert metrics.rsum({"a": 1.0, "b": 0.5}) == 150


def ranked(seed, n=120, levels=12):
    """Scores with ties, and which are right."""
    g = torch.Generator().manual_seed(seed)
    right = torch.rand(n, generator=g) < 0.3
    return (torch.randint(levels, (n,), generator=g) + 3 * right).float(), right


@pytest.mark.parametrize("levels", [1, 2, 12, 10**6])
@pytest.mark.parametrize("seed", range(4))
def test_average_precision_and_roc_auc_equal_scikit_learn_with_ties(seed, levels):
    scores, right = ranked(seed, levels=levels)
    weights = torch.randint(4, (3, len(scores)), generator=torch.Generator().manual_seed(seed))
    for w in (None, *weights):
        kind = {} if w is None else {"sample_weight": w.numpy()}
        rows = None if w is None else w[None]
        for ours, theirs in ((metrics.average_precision, average_precision_score), (metrics.roc_auc, roc_auc_score)):
            assert float(ours(scores, right, rows)) == pytest.approx(theirs(right, scores, **kind), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_eleven_points_equal_the_definition(seed):
    scores, right = ranked(seed, 60, 40)
    found = []
    for threshold in scores.unique():
        said = scores >= threshold
        found.append((float(right[said].sum() / right.sum()), float(right[said].double().mean())))
    slow = np.mean([max(p for r, p in found if r >= level / 10 - 1e-9) for level in range(11)])
    assert float(metrics.average_precision(scores, right, points=11)) == pytest.approx(slow)


def test_average_precision_of_odd_rankings():
    right = torch.tensor([True, False, True])
    assert float(metrics.average_precision(torch.tensor([3.0, 2, 1]), right)) == pytest.approx((1 + 2 / 3) / 2)
    assert float(metrics.average_precision(torch.ones(3), right)) == pytest.approx(2 / 3)  # all at once
    assert torch.isnan(metrics.average_precision(torch.ones(3), torch.zeros(3, dtype=torch.bool)))
    assert torch.isnan(metrics.roc_auc(torch.ones(3), torch.ones(3, dtype=torch.bool)))
    for measure in (metrics.average_precision, metrics.roc_auc):
        with pytest.raises(BadData, match="1 of 3 scores are NaN"):
            measure(torch.tensor([1.0, torch.nan, 0]), right)


def test_harmonic():
    a, b = torch.tensor([0.8, 0.0, 0.5], dtype=torch.float64), torch.tensor([0.4, 0.0, 0.5], dtype=torch.float64)
    assert metrics.harmonic(a, b).tolist() == pytest.approx([2 * 0.8 * 0.4 / 1.2, 0, 0.5])
