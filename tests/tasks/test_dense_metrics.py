import pytest
import torch
from sklearn.metrics import confusion_matrix
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from emblema.core.errors import BadData
from emblema.tasks.dense_metrics import (
    class_accuracy,
    confusion,
    harmonic,
    iou,
    mean_iou,
    over_images,
    pixel_accuracy,
)
from emblema.tasks.statistics import bootstrap

NAN = float("nan")


def maps(seed, classes=5, ignore=0.2, shape=(3, 17, 13)):
    g = torch.Generator().manual_seed(seed)
    truth = torch.randint(classes, shape, generator=g)
    guess = torch.where(torch.rand(shape, generator=g) < 0.4, truth, torch.randint(classes, shape, generator=g))
    return guess, torch.where(torch.rand(shape, generator=g) < ignore, 255, truth)


def test_by_hand():
    truth = torch.tensor([[0, 0, 1], [1, 2, 255]])
    matrix = confusion(torch.tensor([[0, 1, 1], [1, 0, 9]]), truth, 4)  # what is said at 255 does not matter
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(iou(matrix), torch.tensor([1 / 3, 2 / 3, 0, NAN]).double(), equal_nan=True)
    torch.testing.assert_close(class_accuracy(matrix), torch.tensor([0.5, 1, 0, NAN]).double(), equal_nan=True)
    assert pixel_accuracy(matrix) == 3 / 5 and mean_iou(matrix) == pytest.approx(1 / 3)
    assert mean_iou(matrix, torch.tensor([False, True, True, False])) == pytest.approx(1 / 3)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [2, 5, 21])
def test_equal_to_torchmetrics_and_scikit_learn(seed, classes):
    guess, truth = maps(seed, classes)
    matrix = confusion(guess, truth, classes)
    kept = truth != 255
    assert (matrix.numpy() == confusion_matrix(truth[kept], guess[kept], labels=range(classes))).all()
    theirs = MulticlassJaccardIndex(classes, average="none", ignore_index=255)(guess, truth)
    torch.testing.assert_close(iou(matrix), theirs.double(), atol=1e-6, rtol=0)
    theirs = MulticlassAccuracy(classes, average="none", ignore_index=255)(guess, truth)
    torch.testing.assert_close(class_accuracy(matrix), theirs.double(), atol=1e-6, rtol=0)
    micro = MulticlassAccuracy(classes, average="micro", ignore_index=255)(guess, truth)
    assert pixel_accuracy(matrix) == pytest.approx(float(micro), abs=1e-6)


def test_classes_that_are_absent_and_pictures_without_truth():
    guess, truth = maps(0, 4)
    few = confusion(guess.clamp(max=2), torch.where(truth == 3, 255, truth), 6)
    theirs = MulticlassJaccardIndex(6, average="macro", ignore_index=255)
    mean = theirs(guess.clamp(max=2), torch.where(truth == 3, 255, truth))
    assert iou(few).isnan().tolist() == [False] * 3 + [True] * 3 and mean_iou(few) == pytest.approx(float(mean))
    nothing = confusion(guess, torch.full_like(truth, 255), 4)
    assert nothing.sum() == 0 and mean_iou(nothing).isnan()
    told_only = confusion(torch.tensor([0, 1]), torch.tensor([0, 0]), 3)  # said but never true: 0, it counts
    assert iou(told_only).tolist()[:2] == [0.5, 0.0]


def test_labels_out_of_range_are_refused():
    with pytest.raises(BadData, match="predicted labels go from 0 to 255, but there are 2 classes"):
        confusion(torch.tensor([0, 255]), torch.tensor([0, 1]), 2)
    with pytest.raises(BadData, match="true labels go from 0 to 7"):
        confusion(torch.tensor([0, 1]), torch.tensor([0, 7]), 2)
    with pytest.raises(BadData, match="resize"):
        confusion(torch.zeros(4, 4), torch.zeros(2, 2), 2)


def test_harmonic_mean_is_of_the_means():
    assert harmonic(torch.tensor(0.6), torch.tensor(0.2)) == pytest.approx(0.3)
    assert harmonic(torch.tensor(0.0), torch.tensor(0.0)) == 0


def test_interval_over_images():
    each = torch.stack([confusion(*(m[i] for m in maps(3)), 5) for i in range(3)])
    statistic = over_images(each, mean_iou)
    twice_first = statistic(torch.tensor([[2.0, 0, 1]]).double())
    assert twice_first == mean_iou(2 * each[0] + each[2])
    found = bootstrap(statistic, 3, resamples=50)
    assert found.value == pytest.approx(float(mean_iou(each.sum(0)))) and found.low <= found.value <= found.high
