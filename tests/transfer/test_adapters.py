"""Adapters and classifiers on pooled features: with nothing added they are the hand-written prompts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from emblema.frameworks.vlm import unit
from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.calip import CALIP
from emblema.transfer.clip_adapter import CLIPAdapter
from emblema.transfer.cross_modal import CrossModal
from emblema.transfer.task_res import TaskRes, raw_texts
from emblema.transfer.tip_adapter import TipAdapter
from emblema.transfer.tip_adapter_f import TipAdapterF
from emblema.transfer.tip_x import TipX
from emblema.transfer.vt_clip import VTCLIP

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares()
TRAIN, VAL, TEST = (DATA.split(s) for s in ("train", "val", "test"))


def fit(system, val=None, **optim):
    changed = replace(system, optim=replace(system.optim, precision="fp32", **optim))
    return changed.fit(MODEL, TRAIN, val)


def zero_shot(system):
    x = system.read(TEST).arrays["pooled"][0]
    return MODEL.vlm.logits(x, system.hand(MODEL.vlm, DATA.class_names))


NOTHING = [
    TipAdapter(alpha=0.0, views=0),
    CLIPAdapter(ratio=0.0),
    CALIP(weights=(0.0, 0.0)),
    VTCLIP(),
    CrossModal(),
    TipX(alpha=0.0, gamma=0.0, views=0),
]


@pytest.mark.parametrize("system", NOTHING, ids=lambda s: s.card.name)
def test_with_nothing_added_it_is_zero_shot(system):
    fitted = fit(system, steps=1, lr=0.0)
    assert torch.allclose(fitted.predict(TEST), zero_shot(fitted), atol=1e-4)


def test_tip_adapter_f_without_a_step_is_tip_adapter_and_its_gradient_is_numpys():
    trained, free = fit(TipAdapterF(views=2), steps=1, lr=0.0), fit(TipAdapter(views=2))
    assert torch.allclose(trained.predict(TEST), free.predict(TEST), atol=1e-5)
    module, batch = trained.module_, next(trained.read(TRAIN).in_order(6))
    trained.losses(module, batch)["cross_entropy"].backward()
    z, keys, values = (t.detach().double().numpy() for t in (batch.x.pooled, module.keys, module.values))
    near = np.exp(-(1 - z @ keys.T))
    logits = float(MODEL.vlm.scale) * z @ module.hand.double().numpy().T + near @ values
    p = np.exp(logits - logits.max(1, keepdims=True))
    p = p / p.sum(1, keepdims=True) - np.eye(4)[batch.labels.numpy()]
    expected = ((p @ values.T) * near).T @ z / len(z)
    assert np.allclose(module.keys.grad.numpy(), expected, atol=1e-6)


def test_clip_adapter_at_ratio_one_is_the_bottleneck_alone():
    system = fit(CLIPAdapter(ratio=1.0), steps=2)
    x, (down, _, up, _) = system.read(TEST).batch(torch.arange(len(TEST))).x, system.module_.adapt
    alone = F.relu(F.relu(x.raw @ down.weight.T) @ up.weight.T)
    assert torch.allclose(system.predict(TEST), MODEL.vlm.logits(unit(alone), system.module_.hand), atol=1e-4)


def test_task_res_begins_at_raw_text_features_and_alpha_scales_its_rate():
    plain = {"algorithm": "sgd", "momentum": 0.0, "weight_decay": 0.0, "steps": 1, "warmup": 0.0}
    system = fit(TaskRes(), **plain, lr=0.0)
    base = unit(raw_texts(MODEL.vlm, DATA.class_names, system.wording))
    x = system.read(TEST).arrays["pooled"][0]
    assert torch.allclose(system.predict(TEST), MODEL.vlm.logits(x, base), atol=1e-4)
    slow, fast = fit(TaskRes(alpha=1.0), **plain, lr=0.04), fit(TaskRes(alpha=2.0), **plain, lr=0.01)
    assert torch.allclose(slow.predict(TEST), fast.predict(TEST), atol=1e-4)  # alpha^2 lr is the same


def test_tip_x_adds_the_divergence_of_the_class_distributions():
    system = fit(TipX(views=0, gamma=0.5))
    module, z = system.module_, system.read(TEST).arrays["pooled"][0]
    p, q = ((v @ module.hand.T / 0.5).softmax(-1) for v in (z, module.keys))
    expected = torch.stack([F.kl_div(q.log(), row.expand_as(q), reduction="none").sum(-1) for row in p])
    assert torch.allclose(module.divergence(z), expected, atol=1e-5)
    vote = module.divergence_vote(z)
    assert torch.allclose(system.predict(TEST), fit(TipAdapter(views=0)).predict(TEST) + 0.5 * vote, atol=1e-4)


def test_tip_x_chooses_all_three_weights_at_once():
    module = fit(TipX(views=0), VAL).module_
    assert module.alpha >= 0.1 and module.beta >= 1 and module.gamma >= 0.1  # the grid leaves nothing out


def test_calip_with_flat_attention_changes_no_answer():
    flat = fit(CALIP(sharpness=0.0, weights=(0.7, 0.0)))
    x = flat.read(TEST).batch(torch.arange(len(TEST))).x
    _, by_text, _ = flat.module_.parts(x)
    assert torch.allclose(by_text, by_text[:, :1].expand_as(by_text), atol=1e-4)


def test_vt_clip_with_one_place_shifts_all_texts_of_a_picture_alike():
    system = fit(VTCLIP(), steps=2, lr=0.1)
    module, x = system.module_, system.read(TEST).batch(torch.arange(3)).x
    places = module.norm_place(x.patches.flatten(1, 2)[:, :1])
    query = module.norm_text(module.hand).expand(3, -1, -1)
    shift = module.attention(query, places, places, need_weights=False)[0]
    assert torch.allclose(shift, shift[:, :1].expand_as(shift), atol=1e-6) and shift.abs().max() > 0


def test_text_samples_change_the_classifier_and_without_them_it_is_plain_cross_entropy():
    with_texts, without = fit(CrossModal(), steps=3), fit(CrossModal(texts=False), steps=3)
    assert not torch.allclose(with_texts.predict(TEST), without.predict(TEST), atol=1e-4)
    batch = next(without.read(TRAIN).in_order(8))
    assert set(with_texts.losses(with_texts.module_, replace(batch, generator=torch.Generator()))) == {
        "cross_entropy",
        "texts",
    }
    assert set(without.losses(without.module_, batch)) == {"cross_entropy"}


@pytest.mark.parametrize("cls", [TipAdapter, TipAdapterF, TipX, CALIP], ids=lambda c: c.card.name)
def test_what_is_chosen_is_best_on_validation(cls):
    options = {} if cls is CALIP else {"views": 0}
    system = fit(cls(**options), VAL, steps=1)
    y = torch.tensor(VAL.labels)
    right = lambda logits: float((logits.argmax(-1) == y).float().mean())
    assert right(system.predict(VAL)) >= right(fit(cls(**options), steps=1).predict(VAL)) - 1e-6
