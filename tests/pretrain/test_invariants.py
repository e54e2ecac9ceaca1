"""What every contrastive system must keep, whatever its formula."""

import dataclasses
import math

import pytest
import torch
from test_clip import built

from emblema.core.find import find
from emblema.engine.grad_cache import cached_gradients
from emblema.engine.precision import autocast
from emblema.testing import tiny_batch

NAMES = ("clip", "slip", "declip", "otter", "filip", "unicl", "kelip", "clippo")


def method_of(name, **fields):
    if name == "declip":
        fields = {"bank": 16} | fields
    return find("pretrain", name)(arch="tiny", **fields)


def batch_of(n=8, order=None):
    """Labels, texts and views of `tiny_batch`, in another order."""
    batch = tiny_batch(n)
    if order is None:
        return batch
    pick = lambda values: [values[i] for i in order]
    return dataclasses.replace(
        batch,
        keys=pick(batch.keys),
        images=batch.images[order],
        views=[v[order] for v in batch.views],
        texts=pick(batch.texts),
        other_texts=[pick(texts) for texts in batch.other_texts],
        labels=batch.labels[order],
        generator=torch.Generator().manual_seed(0),
    )


def filled(module):
    """Banks hold real texts, so that every term is at work."""
    if "bank" in module:
        g = torch.Generator().manual_seed(5)
        module["bank"].push(torch.nn.functional.normalize(torch.randn(16, 32, generator=g), dim=-1))
    return module


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_batch_is_nothing(name):
    method = method_of(name)
    module = filled(built(method))
    a = method.losses(module, batch_of())
    b = method.losses(module, batch_of(order=[3, 1, 7, 0, 6, 2, 5, 4]))
    for term in a:
        torch.testing.assert_close(a[term], b[term], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_cached_gradients_are_those_of_the_full_batch(name):
    method, module, found = method_of(name), filled(built(method_of(name)).train()), []
    state = {k: v.clone() for k, v in module.state_dict().items()}
    for chunk in (3, None):
        module.load_state_dict(state)
        module.zero_grad()
        if chunk:
            losses = cached_gradients(chunk, lambda: autocast("fp32"))(method, module, batch_of())
        else:
            losses = method.losses(module, batch_of())
            torch.stack(list(losses.values())).sum().backward()
        gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
        found.append((losses, gradients, {n: b.clone() for n, b in module.named_buffers()}))
    (cached, ours, buffers), (full, theirs, expected) = found
    norm = torch.stack([g.norm() for g in theirs.values()]).norm()
    assert ours.keys() == theirs.keys() and norm > 0
    for term in full:
        torch.testing.assert_close(cached[term], full[term].detach(), atol=2e-6, rtol=1e-5)
    for n in theirs:
        assert (ours[n] - theirs[n]).norm() < 1e-5 * norm, n
    for n in expected:
        torch.testing.assert_close(buffers[n], expected[n], atol=1e-5, rtol=1e-4)


FLAT = {  # the contrastive term when the scale is next to nothing: ln B as a mean, 2 ln B as a sum, times its weight
    "clip": ("image_text", 1.0),
    "slip": ("image_text", 1.0),
    "declip": ("image_text", 0.4),
    "otter": ("image_text", 1.0),
    "filip": ("token_wise", 1.0),
    "unicl": ("image_text_label", 1.0),
    "kelip": ("image_text", 1.0),
    "clippo": ("image_text", 1.0),
}


@pytest.mark.parametrize("name", NAMES)
def test_at_scale_0_the_loss_is_ln_b(name):
    method = method_of(name)
    module = built(method)
    module["vlm"].logit_scale.bound_at = "step"
    with torch.no_grad():
        module["vlm"].logit_scale.value.fill_(-30.0)
    term, weight = FLAT[name]
    assert method.losses(module, batch_of())[term].item() == pytest.approx(weight * math.log(8), abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_start_weights_are_those_of_clip(name):
    """Arms of a comparison begin with the same towers."""
    ours, clip = (dict(built(method_of(n))["vlm"].named_parameters()) for n in (name, "clip"))
    shared = [n for n in clip if n in ours and clip[n].shape == ours[n].shape and "logit_scale" not in n]
    if name != "clippo":
        assert len(shared) == len(clip) - 1
        assert all(torch.equal(ours[n], clip[n]) for n in shared)
