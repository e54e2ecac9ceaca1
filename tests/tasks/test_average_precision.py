"""Parity with faster-coco-eval, to the last digits, where evaluators differ: ties, crowds, nothing found, nothing there."""

import contextlib
import io

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask

from emblema.core.boxes import Boxes
from emblema.core.errors import BadData
from emblema.data.coco import encode_mask
from emblema.tasks.average_precision import average_precision, matched, recall

NO = torch.empty(0, 4)


def scene(seed, images=6, classes=4, crowd=0.0, ties=False, side=160, things=6, empty=0.2, step=1):
    """Random truths, and detections that are shifted copies and noise. Coordinates are multiples of `step`."""
    g = np.random.default_rng(seed)

    def boxes(n):
        size = g.integers(4, side // 2, (n, 2)) // step * step + step
        corner = (g.random((n, 2)) * (side - size)) // step * step
        return torch.tensor(np.concatenate([corner, corner + size], 1), dtype=torch.float32).reshape(n, 4)

    found, truth = [], []
    for _ in range(images):
        n = 0 if g.random() < empty else int(g.integers(1, things + 1))
        true = boxes(n)
        labels = torch.tensor(g.integers(0, classes, n), dtype=torch.long)
        is_crowd = torch.tensor(g.random(n) < crowd, dtype=torch.bool)
        areas = Boxes(true).area * torch.tensor(g.uniform(0.5, 1, n), dtype=torch.float32)
        truth.append(Boxes(true, labels, crowd=is_crowd, areas=areas))
        near = true.repeat(3, 1) + torch.tensor(g.integers(-6, 7, (3 * n, 4)), dtype=torch.float32) // step * step
        near[:, 2:] = torch.maximum(near[:, 2:], near[:, :2] + 1)
        extra = 0 if g.random() < empty else int(g.integers(0, 9))
        noise = boxes(extra)
        said = torch.cat([labels.repeat(3), torch.tensor(g.integers(0, classes, extra), dtype=torch.long)])
        scores = torch.tensor(g.random(len(said)), dtype=torch.float64)
        scores = (scores * 3).round() / 3 if ties else scores
        keep = torch.tensor(g.random(len(said)) < 0.7, dtype=torch.bool)
        found.append(Boxes(torch.cat([near, noise]), said, scores).at(keep))
    return found, truth


def coco_of(found, truth, classes, masks=False, images=None, categories=None):
    """The same as COCO's dictionaries."""
    things, said = [], []
    for i, true in enumerate(truth):
        for j in range(len(true)):
            x1, y1, x2, y2 = true.xyxy[j].double().tolist()
            note = {"id": len(things) + 1, "image_id": i, "category_id": int(true.labels[j]) + 1}
            area = (x2 - x1) * (y2 - y1) if true.areas is None else float(true.areas[j])
            note |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "iscrowd": int(_crowd(true, j))}
            things.append(note | ({"segmentation": encode_mask(true.masks[j].numpy())} if masks else {}))
    for i, told in enumerate(found):
        for j in range(len(told)):
            x1, y1, x2, y2 = told.xyxy[j].double().tolist()
            note = {"image_id": i, "category_id": int(told.labels[j]) + 1, "score": float(told.scores[j])}
            note |= {"segmentation": mask.encode(np.asfortranarray(told.masks[j].numpy(), np.uint8))} if masks else {}
            said.append(note if masks else note | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
    shapes = [{"id": i, "height": 160, "width": 160, **(images[i] if images else {})} for i in range(len(truth))]
    kinds = [{"id": c + 1, "name": str(c), **(categories[c] if categories else {})} for c in range(classes)]
    return {"images": shapes, "annotations": things, "categories": kinds}, said


def _crowd(boxes, j):
    return boxes.crowd is not None and bool(boxes.crowd[j])


def theirs(found, truth, classes, kind="bbox", lvis=False, **more):
    """(AP, AP50, AP75, small, medium, large, AR100) and precision [T, R, K, A, M] of faster-coco-eval."""
    annotations, said = coco_of(found, truth, classes, kind == "segm", **more)
    with contextlib.redirect_stdout(io.StringIO()):
        truth_set = COCO(annotations)
        judge = COCOeval_faster(truth_set, truth_set.loadRes(said), kind, lvis_style=lvis)
        if lvis:
            judge.params.maxDets = [300]
        judge.evaluate()
        judge.accumulate()
    return judge.eval["precision"], judge.eval["recall"]


def same(ours, precision, recalls):
    """Per class, threshold and area: AP and recall. Theirs is -1 where ours is NaN."""
    for c, one in enumerate(ours):
        reference = precision[:, :, c, :, -1].mean(1).T  # [A, T]
        expected = torch.tensor(np.where(reference < -0.5, np.nan, reference))
        torch.testing.assert_close(average_precision(one)[..., 0], expected, atol=1e-9, rtol=0, equal_nan=True)
        reference = recalls[:, c, :, -1].T
        expected = torch.tensor(np.where(reference < -0.5, np.nan, reference))
        torch.testing.assert_close(recall(one), expected, atol=1e-9, rtol=0, equal_nan=True)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "kind",
    [{}, {"crowd": 0.4}, {"ties": True}, {"crowd": 0.3, "ties": True, "step": 8}, {"empty": 0.7}, {"classes": 12}],
    ids=["random", "crowd", "ties", "exact overlaps", "empty pictures", "absent classes"],
)
def test_equal_to_faster_coco_eval(seed, kind):
    classes = kind.get("classes", 4)
    found, truth = scene(seed, **kind)
    if not any(map(len, found)):  # theirs refuses a run without detections
        found[0] = Boxes(torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([0]), torch.tensor([0.5]))
    same(matched(found, truth, classes), *theirs(found, truth, classes))


def test_equal_with_more_than_a_hundred_detections():
    found, truth = scene(5, images=2, classes=1, empty=0)
    many = Boxes(
        torch.cat([f.xyxy for f in found] * 20), torch.zeros(20 * sum(map(len, found)), dtype=torch.long), None
    )
    scores = torch.rand(len(many), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = [Boxes(many.xyxy, many.labels, scores), found[1]]
    assert len(found[0]) > 100
    same(matched(found, truth, 1), *theirs(found, truth, 1))


def test_equal_for_masks():
    found, truth = scene(2, crowd=0.3)
    found, truth = ([_with_masks(b) for b in boxes] for boxes in (found, truth))
    same(matched(found, truth, 4, kind="masks"), *theirs(found, truth, 4, "segm"))
    with pytest.raises(BadData, match="needs masks in both"):
        matched(scene(2)[0], truth, 4, kind="masks")


def _with_masks(boxes):
    """Ellipses in the boxes."""
    y, x = np.mgrid[:160, :160] + 0.5
    masks = np.zeros((len(boxes), 160, 160), dtype=bool)
    for i, (x1, y1, x2, y2) in enumerate(boxes.xyxy.tolist()):
        rx, ry = max(x2 - x1, 1) / 2, max(y2 - y1, 1) / 2
        masks[i] = ((x - (x1 + x2) / 2) / rx) ** 2 + ((y - (y1 + y2) / 2) / ry) ** 2 <= 1
    return Boxes(boxes.xyxy, boxes.labels, boxes.scores, boxes.crowd, boxes.areas, torch.from_numpy(masks))


def test_equal_in_the_style_of_lvis():
    found, truth = scene(7, images=10, classes=6, empty=0.1)
    g = np.random.default_rng(0)
    absent, partial, images = [], [], []
    for true in truth:
        there = set(true.labels.tolist())
        absent.append([c for c in range(6) if c not in there and g.random() < 0.5])
        partial.append([c for c in there if g.random() < 0.4])
        images.append({"neg_category_ids": [c + 1 for c in absent[-1]]})
        images[-1]["not_exhaustive_category_ids"] = [c + 1 for c in partial[-1]]
    groups = [{"frequency": "rcf"[c % 3]} for c in range(6)]
    ours = matched(found, truth, 6, most=300, most_an_image=300, absent=absent, partial=partial)
    precision, recalls = theirs(found, truth, 6, lvis=True, images=images, categories=groups)
    same(ours, precision, recalls)


def test_perfect_nothing_and_absent():
    _, truth = scene(1, empty=0)
    perfect = [Boxes(t.xyxy, t.labels, torch.ones(len(t))) for t in truth]
    for one in matched(perfect, truth, 5):
        value = average_precision(one)[0, :, 0]
        assert (value == 1).all() or (value.isnan().all() and one.things.sum() == 0)
    for one in matched([Boxes(NO)] * len(truth), truth, 5):  # nothing said: 0, not NaN, where there was something
        value = average_precision(one)[0, :, 0]
        assert (value == 0).all() or one.things.sum() == 0
    assert average_precision(matched([Boxes(NO)], [Boxes(NO)], 1)[0]).isnan().all()


def test_an_image_of_weight_two_is_an_image_twice():
    found, truth = scene(3, images=5, empty=0)  # equal scores would be read in another order
    weights = torch.tensor([[2, 0, 1, 3, 1.0]], dtype=torch.float64)
    rows = [i for i, w in enumerate(weights[0].int().tolist()) for _ in range(w)]
    for once, again in zip(matched(found, truth, 4), matched([found[i] for i in rows], [truth[i] for i in rows], 4)):
        torch.testing.assert_close(
            average_precision(once, weights), average_precision(again), atol=1e-12, rtol=0, equal_nan=True
        )


def test_what_cannot_be_measured_is_refused():
    box, one = torch.tensor([[0.0, 0, 9, 9]]), torch.zeros(1, dtype=torch.long)
    with pytest.raises(BadData, match="NaN"):
        matched([Boxes(box, one, torch.tensor([torch.nan]))], [Boxes(box, one)], 1)
    with pytest.raises(BadData, match="no scores"):
        matched([Boxes(box, one)], [Boxes(box, one)], 1)
    with pytest.raises(BadData, match="labels go to 3, but there are 2 classes"):
        matched([Boxes(box, one + 3, torch.ones(1))], [Boxes(box, one)], 2)
    with pytest.raises(BadData, match="2 images with detections, 1 with truths"):
        matched([Boxes(NO)] * 2, [Boxes(NO)], 1)
