import dataclasses

import pytest
import torch
import torch.nn.functional as F

from emblema.core.boxes import Boxes
from emblema.core.errors import BadData
from emblema.distill.base import student_recipe
from emblema.distill.pb_ovd import PBOVD, both, products
from emblema.parts.words import mentions
from emblema.testing import tiny_model
from emblema.testing.distill import placed_squares
from emblema.testing.squares import NAMES


@pytest.fixture(scope="module")
def teacher():
    return tiny_model(cache=False, precision="fp32")


def system_of(**fields):
    optim = student_recipe(steps=fields.pop("steps", 1), batch_size=4, precision="fp32")
    return PBOVD(image_size=64, optim=optim, match_steps=2, match_batch=4, **fields)


def told(system, teacher, data):
    """A batch with its targets while the matcher is there."""
    found = {}
    targets = system.targets
    system.targets = lambda vlm, batch: (
        found.setdefault("batch", batch) and found.setdefault("said", targets(vlm, batch))
    )
    system.fit(teacher, data)
    return found["batch"], found["said"]


def test_words_of_captions_become_boxes_of_classes_that_are_not_annotated(teacher):
    data = placed_squares(4)
    batch, said = told(system_of(), teacher, data)
    novel = 0
    for text, true, boxes, labels in zip(batch.texts, batch.boxes, said["boxes"], said["labels"]):
        named = mentions(teacher.vlm.text.tokenizer, text, NAMES)
        assert set(labels.tolist()) <= set(named) - set(true.labels.tolist())
        assert boxes.shape == (len(labels), 4) and (boxes >= 0).all() and (boxes <= 64).all()
        assert 3 not in true.labels  # annotations of the novel class are hidden
        novel += int((labels == 3).sum())
    assert novel > 0  # and its boxes are found by words


def test_a_wrong_caption_names_one_class_that_the_right_one_does_not(teacher):
    system = system_of()
    system.fit(teacher, placed_squares(4))
    caption = f"a {NAMES[0]} and a {NAMES[2]}"
    wrong = system.wrong(caption, torch.Generator().manual_seed(0))
    assert len(wrong) == len(set(wrong)) == 4 and caption not in wrong
    for text in wrong:
        kept = [name for name in (NAMES[0], NAMES[2]) if name in text]
        assert len(kept) == 1 and sum(name in text for name in NAMES) == 2
    assert system.wrong("nothing to see", torch.Generator()) == []


def test_pseudo_boxes_enter_the_loss_as_annotated_ones(teacher):
    data = placed_squares(4)
    system = system_of()
    batch, said = told(system, teacher, data)
    batch.targets = said
    seen, student = [], system.module_.train()
    sample = student.sample
    student.sample = lambda images, truth: seen.extend(truth) or sample(images, truth)
    assert set(system.losses(student, batch)) == {"objectness", "proposals", "boxes", "classes"}
    for boxes, true, xyxy, labels in zip(seen, batch.boxes, said["boxes"], said["labels"]):
        assert torch.equal(boxes.labels, torch.cat([true.labels, labels]))
        assert torch.equal(boxes.xyxy, torch.cat([true.xyxy, xyxy]))
    assert student.seen.all()


def test_base_boxes_only(teacher):
    data = placed_squares(4)
    system = system_of(pseudo=False)
    _, said = told(system, teacher, data)
    assert said == {} and system.module_.seen.tolist() == [True, True, True, False]


def test_the_background_is_the_zero_vector_and_counts_less():
    r, text = torch.randn(3, 8), torch.randn(4, 8)
    logits = products(r, text, torch.tensor([True, True, False, True]))
    assert (logits[:, 0] == 0).all() and logits[:, 3].isinf().all()
    torch.testing.assert_close(logits[:, 1], r @ text[0])
    label = torch.tensor([0, 1, 4])
    each = F.cross_entropy(logits, label, reduction="none")
    weighted = F.cross_entropy(logits, label, torch.tensor([0.2, 1.0, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(weighted, (0.2 * each[0] + each[1] + each[2]) / 2.2)


def test_boxes_of_a_crowd_stay_one():
    true = Boxes(torch.tensor([[0.0, 0, 4, 4]]), labels=torch.tensor([1]), crowd=torch.tensor([True]))
    joint = both(true, torch.tensor([[1.0, 1, 3, 3]]), torch.tensor([2]))
    assert joint.crowd.tolist() == [True, False] and joint.labels.tolist() == [1, 2]
    assert both(true, torch.empty(0, 4), torch.empty(0, dtype=torch.long)) is true


def test_captions_without_a_class_word_and_pictures_without_proposals_give_no_box(teacher):
    data = placed_squares(8)
    for row in range(4):
        data.columns["text"][row] = "nothing to see"
    system = system_of()
    system.fit(teacher, data)
    assert system.unannotated(system.collate([data[i] for i in range(4)])) == [{}] * 4
    system.proposals = lambda batch, most: [torch.empty(0, 4) for _ in batch.keys]
    batch, said = told(system, teacher, placed_squares(4))
    assert [len(b) for b in said["boxes"]] == [0] * 4 and all(len(x) == 0 for x in said["labels"])
    batch.targets = said
    assert all(v.isfinite() for v in system.losses(system.module_.train(), batch).values())


def test_bad_input(teacher):
    data = placed_squares(4)
    data.columns["text"] = ["nothing to see"] * 4
    with pytest.warns(UserWarning, match="no caption names a class that is not annotated"):
        system_of().fit(teacher, data)
    data.columns["text"] = [None] * 4
    with pytest.raises(BadData, match="placed-0 has no captions: pb_ovd learns from pictures with captions"):
        system_of().fit(teacher, data)
    with pytest.raises(BadData, match="features 'deep': choose local, values, plain"):
        dataclasses.replace(system_of(), features="deep").fit(teacher, placed_squares(4))
    with pytest.raises(BadData, match="match_batch=1"):
        dataclasses.replace(system_of(), match_batch=1).fit(teacher, placed_squares(4))
