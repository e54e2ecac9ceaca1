import math

import pytest
import torch
import torch.nn.functional as F

from emblema.core.boxes import Boxes
from emblema.core.errors import BadData
from emblema.students.two_stage import TwoStage, class_logits, fused, suppressed


@pytest.fixture
def rows():
    torch.manual_seed(0)
    return F.normalize(torch.randn(5, 16), dim=-1)


def test_rows_at_minus_infinity_are_rows_that_are_absent(rows):
    seen = torch.tensor([True, True, True, False, False])
    r, background, label = torch.randn(7, 16), torch.randn(16), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    told = []
    for novel in ("neg_inf", "absent"):
        x = r.clone().requires_grad_()
        loss = F.cross_entropy(class_logits(x, rows, background, 5.0, seen, novel), label)
        told.append((loss, *torch.autograd.grad(loss, x)))
    torch.testing.assert_close(*told)


def test_rows_at_zero_cost_what_the_formula_says(rows):
    seen = torch.tensor([True, True, True, False, False])
    r, background, label = torch.randn(7, 16), torch.randn(16), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    absent = class_logits(r, rows, background, 5.0, seen, "absent")
    zero = class_logits(r, rows, background, 5.0, seen, "zero")
    more = torch.log(1 + 2 / absent.exp().sum(1)).mean()
    torch.testing.assert_close(F.cross_entropy(zero, label), F.cross_entropy(absent, label) + more)


def test_equal_branches_fuse_to_themselves_and_halves_to_the_geometric_mean():
    p, q, base = torch.rand(6, 4), torch.rand(6, 4), torch.tensor([True, True, False, False])
    torch.testing.assert_close(fused(p, p, base), p)
    torch.testing.assert_close(fused(p, q, base, 0.5), (p * q).sqrt())
    torch.testing.assert_close(fused(p, q, base)[:, 0], (p[:, 0] ** 2 * q[:, 0]) ** (1 / 3))


def test_what_the_teacher_is_sure_of_scores_higher_when_novel():
    p_text, p_image = torch.tensor([[0.1]]), torch.tensor([[0.9]])
    novel, base = (float(fused(p_text, p_image, torch.tensor([b]))) for b in (False, True))
    assert novel > base and math.isclose(novel, 0.1 ** (1 / 3) * 0.9 ** (2 / 3), rel_tol=1e-5)


def test_of_overlapping_boxes_of_a_class_the_best_is_kept():
    xyxy = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
    said = suppressed(xyxy, torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.0]]))
    assert said.scores.tolist() == pytest.approx([0.9, 0.3, 0.2, 0.0])
    assert said.labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("body", ["tiny", "mobilenet"])
@pytest.mark.parametrize("double", [True, False])
def test_shapes_and_pictures_without_things(rows, body, double):
    student = TwoStage(rows, torch.ones(5, dtype=torch.bool), body=body, double=double)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    one = Boxes(torch.tensor([[8.0, 8, 40, 40]]), labels=torch.tensor([2]))
    none = Boxes(torch.empty(0, 4), labels=torch.empty(0, dtype=torch.long))
    sampled = student.sample(images, [one, none])
    assert sampled.vectors.shape == (len(sampled.labels), 16) and set(sampled.labels.tolist()) == {0, 3}
    assert all(loss.isfinite() for loss in sampled.losses.values())
    student.eval()
    proposals, boxes, r, other = student.look(images)
    assert [len(b) for b in boxes] == [len(p) for p in proposals] == [len(x) for x in r] == [len(x) for x in other]
    assert (r[0] is not other[0] and not r[0].equal(other[0])) if double else r[0].equal(other[0])
    torch.testing.assert_close(student.embed(images, student.maps(images), proposals), torch.cat(r))
    torch.testing.assert_close(student.embed(images, student.maps(images), proposals, image=True), torch.cat(other))


def test_the_refining_of_boxes_knows_no_classes(rows):
    assert TwoStage(rows, torch.ones(5, dtype=torch.bool)).refine.out_features == 4


def test_wrong_words_are_told(rows):
    with pytest.raises(BadData, match="choose tiny"):
        TwoStage(rows, torch.ones(5, dtype=torch.bool), body="vgg")
    with pytest.raises(BadData, match="choose neg_inf"):
        class_logits(rows, rows, rows[0], 1.0, torch.zeros(5, dtype=torch.bool), "none")
