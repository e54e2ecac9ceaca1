import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from emblema.core.boxes import Boxes
from emblema.core.errors import BadData
from emblema.data.datasets import Records
from emblema.distill.base import student_recipe
from emblema.distill.vild import ViLD, imitation
from emblema.students.two_stage import trained
from emblema.testing import tiny_model
from emblema.testing.distill import placed_squares


@pytest.fixture(scope="module")
def teacher():
    return tiny_model(cache=False, precision="fp32")


def fitted(teacher, data, **fields):
    optim = student_recipe(steps=fields.pop("steps", 1), batch_size=4, precision="fp32")
    return ViLD(image_size=64, optim=optim, **fields).fit(teacher, data)


def told(system, teacher, data):
    batch = system.collate([data[i] for i in range(len(data))])
    batch.targets = system.targets(teacher.vlm, batch)
    return batch


def test_imitation_is_a_sum_over_dimensions_and_a_mean_over_regions():
    r, v = torch.randn(3, 8), torch.randn(3, 8)
    slow = sum(abs(a / r[m].norm() - b / v[m].norm()) for m in range(3) for a, b in zip(r[m], v[m])) / 3
    torch.testing.assert_close(imitation(r, v), slow)
    assert imitation(v, 3 * v) < 1e-6


def test_the_teacher_sees_crops_of_both_sizes_normalised_added_and_normalised(teacher):
    data = placed_squares(1)
    system = fitted(teacher, data)
    targets = told(system, teacher, data).targets
    boxes, vectors = targets["regions"][0], targets["vectors"][0]
    picture = Image.fromarray(system.pixels([data[0].image])[0].permute(1, 2, 0).numpy())
    x1, y1, x2, y2 = boxes[0].tolist()
    dx, dy = (x2 - x1) / 4, (y2 - y1) / 4
    wide = (max(x1 - dx, 0), max(y1 - dy, 0), min(x2 + dx, 64), min(y2 + dy, 64))
    z = teacher.embed_images([picture.crop([round(v) for v in box]) for box in ((x1, y1, x2, y2), wide)])
    torch.testing.assert_close(vectors[0], F.normalize(z.sum(0), dim=-1), atol=1e-5, rtol=0)


def test_without_an_image_weight_it_is_vild_text(teacher):
    data = placed_squares(4)
    system = fitted(teacher, data, image_weight=0.0)
    batch = told(system, teacher, data)
    assert batch.targets == {} and system.module_.image_head is None
    system.module_.train()
    assert set(system.losses(system.module_, batch)) == {"objectness", "proposals", "boxes", "classes"}


def test_absent_rows_cost_as_much_as_rows_at_minus_infinity(teacher):
    data = placed_squares(4)
    system = fitted(teacher, data)
    batch, losses = told(system, teacher, data), []
    system.module_.train()
    for rows in ("neg_inf", "absent"):
        system.novel_rows = rows
        torch.manual_seed(0)
        losses.append(system.losses(system.module_, batch))
    torch.testing.assert_close(*losses)


def test_it_finds_what_it_is_shown(teacher):
    data = placed_squares(16)
    system = fitted(teacher, data, steps=120, image_weight=0.0)
    right, things = 0, 0
    for i, said in enumerate(system.predict(data)):
        true = data[i].boxes
        base = true.at(true.labels < 3)
        things += len(base)
        right += sum(_hit(said, base, k) for k in range(len(base)))
    assert right / things > 0.7


def _hit(said: Boxes, true: Boxes, k: int) -> bool:
    from torchvision.ops import box_iou

    some = said.at((said.labels == true.labels[k]) & (said.scores > 0.3))
    return bool(len(some)) and bool(box_iou(some.xyxy, true.xyxy[k : k + 1]).max() > 0.5)


def test_what_it_cannot_learn_from_is_told(teacher):
    data = placed_squares(4)
    bare = Records(data.card, {k: v for k, v in data.columns.items() if k in ("key", "image")}, data.class_names)
    with pytest.raises(BadData, match="has no boxes"):
        fitted(teacher, bare)
    with pytest.raises(BadData, match="a weight is"):
        fitted(teacher, data, image_weight=-1.0)


def test_what_is_distilled_are_all_proposals_and_the_student_comes_nearer(teacher):
    data, terms = placed_squares(8), []
    optim = student_recipe(steps=25, batch_size=8, precision="fp32")
    ViLD(image_size=64, optim=optim).fit(teacher, data, on_step=lambda step: terms.append(step.losses["image"]))
    assert terms[-1] < 0.7 * terms[0]


def test_words_that_were_not_trained_count_as_novel(teacher):
    system = fitted(teacher, placed_squares(4))
    names = system.class_names_
    text = system.text(teacher.vlm, [*names, "house"])
    assert trained(text, system.module_.text[system.module_.seen]).tolist() == [True, True, True, False, False]
