"""BARON: chances of neighbours in closed form, a bag of one is its region, and its contrast is open_clip's."""

import open_clip
import pytest
import torch
import torch.nn.functional as F

from emblema.core.errors import BadData, PromptTooLong
from emblema.distill.baron import BARON, Memory, bag_loss, chances, relative
from emblema.distill.base import student_recipe
from emblema.testing import tiny_model
from emblema.testing.distill import placed_squares


@pytest.fixture(scope="module")
def teacher():
    return tiny_model(cache=False, precision="fp32")


def fitted(teacher, data, **fields):
    optim = student_recipe(steps=fields.pop("steps", 1), batch_size=4, precision="fp32")
    return BARON(image_size=64, optim=optim, **{"words": 2, "queue": 16, **fields}).fit(teacher, data)


def told(system, teacher, data):
    batch = system.collate([data[i] for i in range(len(data))], torch.Generator().manual_seed(0))
    batch.targets = system.targets(teacher.vlm, batch)
    return batch


def test_neighbours_gather_along_the_short_side_and_need_room():
    tall = torch.tensor([50.0, 60.0, 70.0, 100.0])  # 20 x 40
    assert chances(tall, 200, 0.3, 3.0) == pytest.approx((0.3, 0.3, 0.0375, 0.0375))
    assert chances(torch.tensor([10.0, 60.0, 30.0, 100.0]), 200, 0.3, 3.0) == pytest.approx((0, 0.3, 0.0375, 0.0375))
    assert chances(tall, 102, 0.3, 3.0)[3] == 0
    assert chances(tall, 200, 0.0, 3.0) == (0, 0, 0, 0)


def test_bags_hold_neighbours_that_abut(teacher):
    system = fitted(teacher, placed_squares(4), spread=1.0)
    box = torch.tensor([20.0, 20.0, 30.0, 30.0])
    bag = system.bag(box, 64, torch.Generator().manual_seed(0))
    assert torch.equal(bag[0], box) and len(bag) == 6  # of nine, as many as a bag holds
    assert sorted({round(float(b[0]), 4) for b in bag}) == [11.0, 20.0, 29.0]
    assert len(system.bag(torch.tensor([0.0, 0.0, 50.0, 5.0]), 64, torch.Generator())) == 0  # too long


def test_a_bag_of_one_without_its_place_is_its_region(teacher):
    data = placed_squares(4)
    student = fitted(teacher, data, spread=0.0).module_
    words = torch.randn(3, 2, teacher.vlm.text.width)
    for layer in (student.place[2].weight, student.place[2].bias):
        layer.data.zero_()
    placed = student.placed(words, torch.rand(3, 4))
    assert torch.allclose(student.read(placed, torch.tensor([0, 1, 2]), None), student.say(words), atol=1e-6)


def test_sentences_of_unlike_length_are_read_as_if_alone(teacher):
    student = fitted(teacher, placed_squares(4)).module_
    words, bag = torch.randn(4, 2, teacher.vlm.text.width), torch.tensor([0, 1, 0, 1])
    dice = torch.Generator().manual_seed(3)
    order = torch.argsort(bag + torch.rand(4, generator=torch.Generator().manual_seed(3)))
    alone = torch.cat([student.say(words[order[i : i + 2]].flatten(0, 1)[None]) for i in (0, 2)])
    assert torch.allclose(student.read(words, bag, dice), alone, atol=1e-6)
    three = student.read(words, torch.tensor([0, 0, 0, 1]), None)
    assert torch.allclose(three[1:], student.say(words[3:]), atol=1e-6)


def test_without_queues_it_is_open_clips_loss():
    z, v = (F.normalize(torch.randn(5, 8), dim=-1) for _ in range(2))
    expected = open_clip.ClipLoss()(z, v, torch.tensor(30.0))
    torch.testing.assert_close(bag_loss(z, v, torch.arange(5), Memory(4, 8), 30.0), expected)


def test_earlier_bags_are_negatives_unless_of_the_same_picture_and_orders_are_none():
    z, v, old = (F.normalize(torch.randn(3, 8), dim=-1) for _ in range(3))
    memory, pictures = Memory(4, 8), torch.tensor([7, 8, 9])
    memory.push(old, old, torch.tensor([7, 1, 2]))
    for orders in (1, 2):  # another order of a bag is no negative of its own, but of the others
        slow = []
        for i in range(3):
            seen = [j for j in range(3) if pictures[i] != memory.picture[j]]
            others = [j for j in range(3) if j != i] * orders
            for a, b in ((z, v), (v, z)):
                logits = 30 * torch.cat([b[i : i + 1], b[others], old[seen]]) @ a[i]
                slow.append(-logits.log_softmax(0)[0])
        found = bag_loss(z.repeat(orders, 1), v.repeat(orders, 1), pictures.repeat(orders), memory, 30.0)
        torch.testing.assert_close(found, torch.stack(slow).mean())


def test_where_a_region_is_in_its_bag():
    found = relative(torch.tensor([[0.0, 0, 5, 10], [5, 0, 10, 10]]), torch.tensor([[0.0, 0, 10, 10]]).repeat(2, 1))
    assert torch.allclose(found, torch.tensor([[0.25, 0.5, 0.5, 1], [0.75, 0.5, 0.5, 1]]))


def test_targets_are_hulls_and_the_student_comes_nearer(teacher):
    data, terms = placed_squares(8), []
    optim = student_recipe(steps=30, batch_size=8, precision="fp32")
    BARON(image_size=64, optim=optim, words=2, queue=8, drop=0.0).fit(
        teacher, data, on_step=lambda step: terms.append(step.losses["bags"])
    )
    assert terms[-1] < terms[3]
    system = fitted(teacher, data, spread=1.0)
    targets = told(system, teacher, data).targets
    regions, bag, hull = (targets[name][0] for name in ("regions", "bag", "hulls"))
    assert len(targets["vectors"][0]) == len(hull) == int(bag.max()) + 1
    own = regions[bag == 0]
    assert torch.equal(hull[0], torch.cat([own[:, :2].amin(0), own[:, 2:].amax(0)]))


def test_no_bag_is_no_term(teacher):
    data = placed_squares(4)
    system = fitted(teacher, data)
    batch = told(system, teacher, data)
    empty = {"regions": torch.empty(0, 4), "bag": torch.empty(0).long(), "hulls": torch.empty(0, 4)}
    batch.targets = {n: [v] * 4 for n, v in empty.items()} | {"vectors": [torch.empty(0, teacher.dim)] * 4}
    system.module_.train()
    assert "bags" not in system.losses(system.module_, batch)


def test_what_cannot_be_is_told(teacher):
    with pytest.raises(PromptTooLong):
        fitted(teacher, placed_squares(2), words=100)
    with pytest.raises(BadData, match="shares from 0 to 1"):
        fitted(teacher, placed_squares(2), spread=2.0)
