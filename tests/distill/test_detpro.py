"""DetPro: the loss of its words in closed form, CoOp as its limit, and words that are learnt for boxes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import box_iou

from emblema.core.errors import BadData
from emblema.distill.base import student_recipe
from emblema.distill.detpro import NOTHING, DetPro, ensemble, moved, prompt_loss
from emblema.parts.prompts import PromptClassifier, PromptedText
from emblema.testing import tiny_model
from emblema.testing.distill import placed_squares


@pytest.fixture(scope="module")
def teacher():
    return tiny_model(cache=False, precision="fp32")


def fitted(teacher, data, **fields):
    optim = student_recipe(steps=fields.pop("steps", 1), batch_size=4, precision="fp32")
    settings = {"context_length": 4, "prompt_steps": 3, "background": 1, **fields}
    return DetPro(image_size=64, optim=optim, **settings).fit(teacher, data)


def test_background_costs_its_divergence_from_the_uniform_and_log_c():
    logits = torch.randn(5, 7, dtype=torch.float64)
    u = torch.full((7,), 1 / 7, dtype=torch.float64)
    expected = F.kl_div(logits.log_softmax(-1), u.expand(5, 7), reduction="batchmean") + math.log(7)
    torch.testing.assert_close(prompt_loss(logits, torch.full((5,), NOTHING)), expected)


def test_labels_weigh_alike_whatever_their_number():
    logits, label = torch.randn(6, 3), torch.tensor([0, 0, 0, 1, NOTHING, NOTHING])
    said = logits.log_softmax(-1)
    each = [-said[:3, 0].mean(), -said[3, 1], -said[4:].mean()]
    torch.testing.assert_close(prompt_loss(logits, label), torch.stack(each).mean())


def test_without_background_and_bands_it_is_coop(teacher):
    names, f = ["red", "green", "blue"], F.normalize(torch.randn(6, teacher.dim), dim=-1)
    label = torch.tensor([0, 0, 1, 1, 2, 2])
    coop = PromptClassifier(teacher.vlm, names, 4)
    coop.prompt.context.requires_grad_(True)
    F.cross_entropy(f @ coop.prompt().T / 0.01, label).backward()
    context = nn.Parameter(coop.prompt.context.detach()[None])
    words = PromptedText(teacher.vlm, names, 4)
    loss = prompt_loss(f @ words(context[0]).T / 0.01, label)
    loss.backward()
    torch.testing.assert_close(context.grad[0], coop.prompt.context.grad, atol=1e-5, rtol=1e-4)


def test_one_context_is_its_own_ensemble_and_several_are_a_unit_sum(teacher):
    words, contexts = PromptedText(teacher.vlm, ["red", "blue"], 4), torch.randn(2, 4, teacher.vlm.text.width)
    assert torch.allclose(ensemble(words, contexts[:1]), words(contexts[0]), atol=1e-6)
    expected = F.normalize(words(contexts[0]) + words(contexts[1]), dim=-1)
    assert torch.allclose(ensemble(words, contexts), expected, atol=1e-6)


def test_moved_boxes_fill_the_bands():
    box = torch.tensor([[20.0, 20.0, 44.0, 40.0]])
    overlap = box_iou(moved(box, 200, 64, torch.Generator().manual_seed(0)), box)[:, 0]
    assert overlap.min() > 0.2 and (overlap > 0.75).float().mean() > 0.2 and (overlap < 0.75).float().mean() > 0.2


def test_words_are_learnt_from_base_things_only(teacher):
    data = placed_squares(8)
    system = fitted(teacher, data)
    f, label, overlap = system.examples(data)
    assert f.shape == (len(label), teacher.dim) and set(label.tolist()) <= {NOTHING, 0, 1, 2}
    assert (overlap[label != NOTHING] >= 0.5).all() and (overlap[label == NOTHING] < 0.5).all()
    assert set(label.tolist()) == {NOTHING, 0, 1, 2}


def test_learning_words_lowers_their_loss_and_they_name_other_words_too(teacher):
    data = placed_squares(8)
    before, after = fitted(teacher, data, prompt_steps=0), fitted(teacher, data, prompt_steps=40)
    f, label, _ = after.examples(data)
    words = PromptedText(teacher.vlm, after.class_names_[:3], 4)
    cost = lambda system: float(prompt_loss(f @ ensemble(words, system.module_.contexts).T / 0.01, label))
    assert cost(after) < cost(before)
    asked = after.text(teacher.vlm, ["house", *after.class_names_])
    expected = ensemble(PromptedText(teacher.vlm, ["house"], 4), after.module_.contexts)
    assert torch.allclose(asked[:1], expected, atol=1e-5)
    assert torch.allclose(asked[1:], after.module_.detector.text, atol=1e-5)


def test_without_contexts_the_words_are_written_by_hand(teacher):
    system = fitted(teacher, placed_squares(4), context_length=0)
    assert torch.allclose(system.module_.detector.text, teacher.class_vectors(system.class_names_, system.wording))


def test_what_cannot_be_is_told(teacher):
    with pytest.raises(BadData, match="rising overlaps"):
        fitted(teacher, placed_squares(2), edges=(0.7, 0.5))
    system, words = fitted(teacher, placed_squares(2)), PromptedText(teacher.vlm, ["red"], 4)
    f, label = torch.randn(3, teacher.dim), torch.full((3,), NOTHING)
    with pytest.raises(BadData, match="no base thing"):
        system.learn_words(words, system.module_.contexts, f, label, torch.full((3,), 0.3))
