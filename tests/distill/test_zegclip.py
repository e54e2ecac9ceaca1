import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from emblema.core.errors import BadData
from emblema.data.datasets import Records
from emblema.distill.base import student_recipe
from emblema.distill.zegclip import ZegCLIP, dice, one_hot
from emblema.testing import tiny_model
from emblema.testing.distill import placed_squares
from emblema.testing.squares import NAMES


@pytest.fixture(scope="module")
def teacher():
    return tiny_model(cache=False)


def fitted(teacher, data, steps=1, **fields):
    return ZegCLIP(image_size=64, optim=student_recipe(steps=steps, batch_size=4), **fields).fit(teacher, data)


def test_masks_and_dice_by_hand():
    labels = torch.tensor([[[0, 2], [255, 2]]])
    masks, known = one_hot(labels, torch.tensor([0, 2, 3]))
    assert masks[0].tolist() == [[[1, 0], [0, 0]], [[0, 1], [0, 1]], [[0, 0], [0, 0]]]
    assert known[0, 0].tolist() == [[1, 1], [0, 1]]
    logits = torch.zeros(1, 3, 2, 2)  # p = 1/2: |p y| = 1/2 and 1; the third class is not there
    expected = ((1 - 2 / 4) + (1 - 3 / 5)) / 2
    torch.testing.assert_close(dice(logits, masks), torch.tensor(expected))
    assert dice(logits, torch.zeros_like(logits)) == 0


@pytest.mark.parametrize("negative", [True, False])
def test_the_focal_term_by_hand(teacher, negative):
    data = placed_squares(4)
    system = fitted(teacher, data, nothing_is_negative=negative, enlarge=1.0)
    batch = system.collate([data[i] for i in range(4)])
    with torch.no_grad():
        terms = system.losses(system.module_, batch)
        logits = torch.nn.functional.interpolate(
            system.module_(batch.images, system.module_.text), (16, 16), mode="bilinear", align_corners=False
        )
    labels = system.truth(batch, (16, 16))
    y = torch.stack([(labels == c).float() for c in range(3)], 1)
    p = logits.sigmoid()
    right = p * y + (1 - p) * (1 - y)
    weight = 0.25 * y + 0.75 * (1 - y)
    focal = weight * (1 - right) ** 2 * bce(logits, y, reduction="none")
    if not negative:
        focal = focal * (labels != 255)[:, None]
    torch.testing.assert_close(terms["focal"], 100 * focal.mean())


def test_a_class_does_not_depend_on_the_others(teacher):
    system = fitted(teacher, placed_squares(4), steps=3)
    picture = [placed_squares(1)[0].image]
    (alone,), (among,) = (list(system.segment(picture, names)) for names in (NAMES[1:2], NAMES))
    torch.testing.assert_close(alone[0], among[1], atol=1e-5, rtol=1e-4)


def test_only_seen_classes_are_held_back(teacher):
    data = placed_squares(4)
    system = fitted(teacher, data)
    picture = [data[0].image]
    (with_offset,) = system.segment(picture, NAMES)
    system.offset = 0.0
    (raw,) = system.segment(picture, NAMES)
    torch.testing.assert_close(raw[:3] - with_offset[:3], torch.full_like(raw[:3], 0.1))
    assert raw[3].equal(with_offset[3]) and (raw[4] == 0.5).all()


def test_without_the_descriptor_the_queries_are_the_texts(teacher):
    module = fitted(teacher, placed_squares(4), descriptor=False, layers=1).module_
    patches, text = torch.randn(2, 9, teacher.dim), module.text
    q, k = module.last.q(text), module.last.kv(patches)[..., : teacher.dim]
    expected = torch.einsum("cd,bnd->bcn", q, k) / 4 / (teacher.dim / 4) ** 0.5  # heads add up
    torch.testing.assert_close(module.decode(text, torch.randn(2, teacher.dim), patches), expected)


def test_it_learns_what_it_is_shown(teacher):
    data = placed_squares(8)
    first, last = [], []
    system = ZegCLIP(image_size=64, enlarge=2.0, optim=student_recipe(steps=60, batch_size=8))
    system.fit(teacher, data, on_step=lambda s: (first if s.number <= 3 else last).append(s.loss))
    assert sum(last[-3:]) < 0.6 * sum(first)


def test_label_maps_are_asked_for(teacher):
    data = placed_squares(4)
    bare = Records(data.card, {k: v for k, v in data.columns.items() if k in ("key", "image")}, data.class_names)
    with pytest.raises(BadData, match="has no masks"):
        fitted(teacher, bare)
