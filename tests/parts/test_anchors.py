import pytest
import torch
from torchvision.ops import box_iou

from emblema.parts.anchors import answers_for, centreness, decoded, middle, square_anchors


def some(seed=0):
    g = torch.Generator().manual_seed(seed)
    anchors = square_anchors([(8, 8), (4, 4)], [4, 8], 3.0)
    corner = torch.rand(4, 2, generator=g) * 20
    return anchors, [64, 16], torch.cat([corner, corner + 3 + torch.rand(4, 2, generator=g) * 12], 1)


def test_anchors_stand_in_the_middle_of_their_places():
    anchors = square_anchors([(2, 3), (1, 2)], [8, 16], 4.0)
    assert anchors.shape == (8, 4)
    assert middle(anchors).tolist()[:4] == [[4, 4], [12, 4], [20, 4], [4, 12]] and middle(anchors)[6].tolist() == [8, 8]
    assert (anchors[:6, 2:] - anchors[:6, :2] == 32).all() and (anchors[6:, 2:] - anchors[6:, :2] == 64).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_assignment_is_that_of_a_slow_loop(seed):
    anchors, levels, boxes = some(seed)
    best, expected = [0.0] * len(anchors), [-1] * len(anchors)
    for m, box in enumerate(boxes.tolist()):
        cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        candidates, first = [], 0
        for count in levels:
            rows = range(first, first + count)
            distance = {n: ((middle(anchors)[n] - torch.tensor([cx, cy])) ** 2).sum().item() for n in rows}
            candidates += sorted(rows, key=distance.__getitem__)[:9]
            first += count
        overlap = [box_iou(anchors[n : n + 1], boxes[m : m + 1]).item() for n in candidates]
        mean = sum(overlap) / len(overlap)
        bar = mean + (sum((x - mean) ** 2 for x in overlap) / (len(overlap) - 1)) ** 0.5
        for n, x in zip(candidates, overlap):
            px, py = middle(anchors)[n].tolist()
            if x >= bar and box[0] < px < box[2] and box[1] < py < box[3] and x > best[n]:
                best[n], expected[n] = x, m
    assert answers_for(anchors, levels, boxes).tolist() == expected
    assert len(set(expected)) > 2


def test_without_things_no_anchor_answers():
    anchors, levels, _ = some()
    assert (answers_for(anchors, levels, torch.empty(0, 4)) == -1).all()


def test_offsets_of_zero_are_the_anchor_and_others_its_closed_form():
    anchors, *_ = some()
    torch.testing.assert_close(decoded(torch.zeros_like(anchors), anchors), anchors)
    moved = decoded(torch.tensor([1.0, -2.0, 5 * torch.log(torch.tensor(2.0)), 0.0]), torch.tensor([0.0, 0, 10, 20]))
    torch.testing.assert_close(moved, torch.tensor([-4.0, -4, 16, 16]))  # centre (5, 10) -> (6, 6), sides (20, 20)
    assert decoded(torch.full((4,), 1e9), anchors[0]).isfinite().all()


def test_centreness_is_1_in_the_middle_and_0_at_the_border():
    box = torch.tensor([0.0, 0, 8, 4])
    points = torch.tensor([[4.0, 2], [0, 2], [2, 1], [9, 2]])
    torch.testing.assert_close(centreness(points, box), torch.tensor([1.0, 0, (2 / 6 * 1 / 3) ** 0.5, 0]))
