import numpy as np
import pytest
import torch
from scipy import ndimage

from emblema.core.errors import NoSuchDoor
from emblema.distill.clip_es import CLIPES, affinity, grad_cam, spread, stretched
from emblema.frameworks.vlm import unit
from emblema.parts.components import boxed, components
from emblema.testing import tiny_model
from emblema.testing.distill import placed_squares


@pytest.fixture(scope="module")
def teacher():
    return tiny_model(cache=False)


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def texts(teacher, *words):
    return teacher.class_vectors(list(words))


def test_the_maps_follow_the_closed_form_of_the_softmax(teacher, images):
    """dy_c = y_c s (t_c - sum_j y_j t_j) . df, with df/dA from a forward written out here."""
    vlm, text, others = teacher.vlm, texts(teacher, "cat", "dog"), texts(teacher, "sky", "grass")
    cam, _ = grad_cam(vlm, images, text, others)
    tower, last = vlm.image, vlm.image.depth - 1
    tokens = tower.enter(tower.embed(images))
    for i in range(last):
        tokens = tower.layer(i, tokens)
    tokens, block = tower.before(last, tokens), tower.blocks[last]
    a = block.norm1(tokens.x).detach().requires_grad_()
    x = tokens.x + block.attention(a)
    x = x + block.mlp(block.norm2(x))
    first, (h, w) = tokens.first_patch, tokens.grid
    f = unit(tower.project(tower.norm(x[:, first : first + h * w])).mean(1))
    every = torch.cat([text, others])
    y = (vlm.scale * f @ every.T).softmax(-1).detach()
    for c in range(2):
        direction = y[:, c : c + 1] * vlm.scale.detach() * (every[c] - y @ every)  # dy_c / df: [B, D]
        (gradient,) = torch.autograd.grad((f * direction).sum(), a, retain_graph=True)
        weight = gradient[:, first : first + h * w].mean(1, keepdim=True)
        expected = stretched((a[:, first : first + h * w] * weight).sum(-1).relu().view(2, h, w))
        torch.testing.assert_close(cam[:, c], expected.detach(), atol=2e-3, rtol=0)


def test_the_affinity_is_doubly_stochastic_once_converged():
    attention = torch.rand(2, 9, 9, generator=torch.Generator().manual_seed(0)).softmax(-1)
    t = affinity(attention, rounds=200)
    assert t.sum(2).sub(1).abs().max() < 1e-5 and t.sum(1).sub(1).abs().max() < 1e-5
    assert t.allclose(t.transpose(1, 2), atol=1e-6)


def test_without_attention_the_map_stays(images):
    cam = stretched(torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(1)))
    kept = spread(cam, torch.eye(16)[None], box=-1.0)
    torch.testing.assert_close(kept, cam)


def test_attention_from_outside_the_boxes_does_not_count():
    cam = torch.zeros(1, 1, 4, 4)
    cam[0, 0, 0, 0], cam[0, 0, 3, 3] = 1.0, 0.3
    even = torch.full((1, 16, 16), 1 / 16)
    even[:, 5] *= 2
    found = spread(cam, even)
    assert found[0, 0].argmax() == 5 and found[0, 0].count_nonzero() == 1


@pytest.mark.parametrize("share", [0.2, 0.45, 1.0])
def test_components_are_scipys(share):
    mask = torch.rand(12, 9, generator=torch.Generator().manual_seed(3)) < share
    numbers, count = ndimage.label(mask.numpy(), np.ones((3, 3)))
    ours = components(mask)
    assert int(ours.max()) == count and ours.gt(0).equal(mask)
    boxes = torch.zeros_like(mask)
    for rows, columns in ndimage.find_objects(numbers):
        boxes[rows, columns] = True
    assert boxed(mask).equal(boxes)


def test_only_the_classes_of_a_picture_compete(teacher):
    data = placed_squares(3)
    system = CLIPES(image_size=64).fit(teacher, data)
    for record, map_ in zip(data, system.predict(data)):
        assert map_.shape[0] == 5
        absent = [c for c in range(4) if c not in record.labels]
        assert not map_[absent].any() and all(map_[c].max() == 1 for c in record.labels)


def test_a_label_among_the_backgrounds_does_not_compete_with_itself(teacher, images):
    system = CLIPES(image_size=64, backgrounds=("sky", "grass")).fit(teacher, placed_squares(2))
    same = CLIPES(image_size=64, backgrounds=("sky",)).fit(teacher, placed_squares(2))
    picture = [placed_squares(1)[0].image]
    (one,), (other,) = (list(s.segment(picture, ["grass"])) for s in (system, same))
    torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


def test_a_tower_without_attention_is_refused(images):
    from emblema.frameworks.two_tower import architecture

    vlm = architecture("tiny").build()
    vlm.image = torch.nn.Identity()
    with pytest.raises(NoSuchDoor, match="Use a ViT"):
        grad_cam(vlm, images, torch.eye(2), torch.eye(2))
