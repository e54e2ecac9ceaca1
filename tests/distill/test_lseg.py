import pytest
import torch
import torch.nn.functional as F

from emblema.core.errors import BadData
from emblema.data.datasets import Records
from emblema.distill.base import student_recipe
from emblema.distill.lseg import LSeg, numbers
from emblema.testing import tiny_model
from emblema.testing.distill import placed_squares
from emblema.testing.squares import NAMES


@pytest.fixture(scope="module")
def teacher():
    return tiny_model(cache=False)


def fitted(teacher, data, steps=1, **fields):
    return LSeg(image_size=64, optim=student_recipe(steps=steps, batch_size=4), **fields).fit(teacher, data)


def test_scores_are_cosines_over_the_temperature(teacher):
    data = placed_squares(4)
    system = fitted(teacher, data, blocks=0)
    batch = system.collate([data[i] for i in range(4)])
    text, features = system.module_.text, system.module_.features(batch.images)
    cosine = torch.einsum("bdhw,cd->bchw", features, text) / features.norm(dim=1, keepdim=True)
    torch.testing.assert_close(system.module_(batch.images, text), 14.285714 * cosine, atol=1e-4, rtol=1e-4)
    (loss,) = system.losses(system.module_, batch).values()
    labels = system.truth(batch, cosine.shape[-2:])
    there = labels != 255
    expected = F.cross_entropy(14.285714 * cosine.permute(0, 2, 3, 1)[there], labels[there])
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["bottleneck", "depthwise"])
def test_labels_in_another_order_give_the_same_maps_in_that_order(teacher, kind):
    system = fitted(teacher, placed_squares(4), steps=3, blocks=2, kind=kind, others="others")
    picture = [placed_squares(1)[0].image]
    (one,), (other,) = (list(system.segment(picture, n)) for n in (NAMES, NAMES[::-1]))
    assert one.shape[0] == 5
    torch.testing.assert_close(one[:4].flip(0), other[:4], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one[4], other[4], atol=1e-4, rtol=1e-4)


def test_novel_classes_have_no_row_in_training(teacher):
    system = fitted(teacher, placed_squares(4))
    assert len(system.module_.text) == 3
    seen = torch.tensor([True, False, True])
    assert numbers(seen, False)[[0, 1, 2, 255]].tolist() == [0, 255, 1, 255]
    assert numbers(seen, True)[[0, 1, 2, 255]].tolist() == [0, 2, 1, 2]


def test_it_learns_what_it_is_shown(teacher):
    data = placed_squares(16)
    system = fitted(teacher, data, steps=80, others="others")
    right, count = 0, 0
    for i, scores in enumerate(system.predict(data)):
        truth = system.collate([data[i]]).masks[0].labels
        scores = F.interpolate(scores[None], truth.shape, mode="bilinear")[0]
        said = scores[[0, 1, 2, 4]].argmax(0)  # seen classes and others
        right += int((said == truth.where(truth != 255, 3)).sum())
        count += truth.numel()
    assert right / count > 0.9


def test_what_it_cannot_learn_from_is_told(teacher):
    data = placed_squares(4)
    bare = Records(data.card, {k: v for k, v in data.columns.items() if k in ("key", "image")}, data.class_names)
    with pytest.raises(BadData, match="has no masks"):
        fitted(teacher, bare)
    with pytest.raises(BadData, match="depthwise"):
        fitted(teacher, data, kind="wide")
