"""Learnt words: every coupling at zero is CoOp."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA

from emblema.parts.prompts import hand_written
from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.cocoop import CoCoOp
from emblema.transfer.coop import CoOp
from emblema.transfer.kgcoop import KgCoOp
from emblema.transfer.lasp import LASP
from emblema.transfer.prograd import ProGrad, aligned
from emblema.transfer.subpt import SubPT, directions
from emblema.transfer.tpt import TPT, entropy_of_mean

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares()
TRAIN, TEST = DATA.split("train"), DATA.split("test")
WORDS = "a photo of a "


def fit(system, **changes):
    optim = {"steps": 3, "precision": "fp32", "batch_size": 8, "lr": 0.01, "warmup": 0.0, "clip_norm": None}
    return replace(system, optim=replace(system.optim, **optim | changes)).fit(MODEL, TRAIN)


COOP = fit(CoOp(words=WORDS))
UNCOUPLED = [
    KgCoOp(words=WORDS, weight=0.0),
    LASP(words=WORDS, weight=0.0, recalibrate=False),
    ProGrad(words=WORDS, weight=0.0),
]


@pytest.mark.parametrize("system", UNCOUPLED, ids=lambda s: s.card.name)
def test_without_coupling_it_is_coop(system):
    assert torch.allclose(fit(system).predict(TEST), COOP.predict(TEST), atol=1e-4)


def test_cocoop_with_a_silent_network_is_coop_and_pictures_do_not_mix():
    system = fit(CoCoOp(words=WORDS))
    x = system.read(TEST).batch(torch.arange(4)).x
    one_by_one = torch.cat([system.module_(system.read(TEST).batch(torch.tensor([i])).x) for i in range(4)])
    assert torch.allclose(system.module_(x), one_by_one, atol=1e-5)
    torch.nn.init.zeros_(system.module_.meta[2].weight)
    torch.nn.init.zeros_(system.module_.meta[2].bias)
    with torch.no_grad():
        system.module_.prompt.context.copy_(COOP.module_.prompt.context)
    assert torch.allclose(system.predict(TEST), COOP.predict(TEST), atol=1e-4)


def test_kgcoop_measures_the_distance_to_the_hand_written_prompts():
    system = fit(KgCoOp(words=WORDS, templates=("a photo of a {}.",)), lr=0.0)
    batch = next(system.read(TRAIN).in_order(8))
    assert system.losses(system.module_, batch)["knowledge"].item() == pytest.approx(0, abs=1e-4)
    moved = fit(KgCoOp(words=WORDS, weight=3.0, templates=("a photo of a {}.",)), lr=0.5)
    t, hand = moved.module_.prompt(), hand_written(MODEL.vlm, DATA.class_names, ["a photo of a {}."])
    expected = 3 * 0.5 * (t - hand).pow(2).sum(-1).mean()  # ||a - b||^2 = 2 (1 - cos)
    assert torch.allclose(moved.losses(moved.module_, batch)["knowledge"], expected, atol=1e-5)


def test_prograd_leaves_no_gradient_against_zero_shot():
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        special, general = torch.randn(2, 4, 3, generator=g)
        found = aligned(special, general, 1.0)
        if (special * general).sum() < 0:
            assert abs((found * general).sum().item()) < 1e-5
        else:
            assert torch.equal(found, special)
    assert torch.equal(aligned(special, -special, 0.0), special)


def test_subpt_directions_are_principal_and_gradients_stay_in_their_span():
    contexts = torch.randn(7, 30, generator=torch.Generator().manual_seed(0))
    ours, theirs = directions(contexts, 4).numpy(), PCA(4).fit(contexts.numpy()).components_
    assert np.allclose(np.abs((ours * theirs).sum(1)), 1, atol=1e-5)
    assert np.allclose(ours @ ours.T, np.eye(4), atol=1e-6)
    assert len(directions(contexts[:3], 10)) == 2
    system = fit(SubPT(context_length=2, early=2, rank=1), weight_decay=0.0, steps=27)
    first = fit(SubPT(context_length=2, early=2, rank=1), weight_decay=0.0, steps=27)
    start, kept = first.explored(first.build(MODEL.vlm, DATA.class_names), first.read(TRAIN))
    assert kept.shape[1] == start.numel()
    moved, basis = system.module_.prompt.context.detach().flatten(), system.module_.basis
    batch = next(system.read(TRAIN).in_order(8))
    system.backward(system.module_, system.losses(system.module_, batch))
    grad = system.module_.prompt.context.grad.flatten()
    assert torch.allclose(basis.T @ (basis @ grad), grad, atol=1e-6) and moved.isfinite().all()


def test_subpt_with_a_full_basis_projects_nothing():
    system = fit(SubPT(context_length=2, early=1, rank=1))
    system.module_.basis = torch.eye(system.module_.prompt.context.numel())
    batch = next(system.read(TRAIN).in_order(8))
    system.backward(system.module_, system.losses(system.module_, batch))
    projected = system.module_.prompt.context.grad.clone()
    system.module_.zero_grad()
    system.losses(system.module_, batch)["cross_entropy"].backward()
    assert torch.allclose(projected, system.module_.prompt.context.grad, atol=1e-6)


def test_lasp_with_a_template_as_prompt_classifies_it_among_itself():
    system = fit(LASP(words=WORDS, templates=("a photo of a {}.",), noise=0.0, weight=1.0), lr=0.0)
    module = system.module_
    module.hand = module.hand[:1]
    text = system.losses(module, replace(next(system.read(TRAIN).in_order(4)), generator=torch.Generator()))["text"]
    h = module.hand[0]
    assert torch.allclose(text, F.cross_entropy(MODEL.vlm.scale * h @ h.T, torch.arange(4)), atol=1e-4)


def test_tpt_without_a_rate_is_the_prompt_it_began_with_and_leaves_no_trace():
    still = replace(TPT(words=WORDS, crops=6), optim=replace(TPT().optim, lr=0.0)).fit(MODEL, TRAIN)
    x = still.read(TEST).arrays["pixels"][0]
    expected = MODEL.vlm.logits(
        MODEL.vlm.encode_image(x), hand_written(MODEL.vlm, DATA.class_names, ["a photo of a {}."])
    )
    assert torch.allclose(still.predict(TEST), expected, atol=1e-4)
    moving = TPT(words=WORDS, crops=6).fit(MODEL, TRAIN)
    before = moving.module_.prompt.context.detach().clone()
    first = moving.predict(TEST)
    assert torch.equal(moving.module_.prompt.context, before) and torch.equal(first, moving.predict(TEST))
    assert not torch.allclose(first, expected, atol=1e-3)


def test_tpt_takes_one_step_of_adamw_on_the_entropy_of_the_surest_views():
    system = TPT(words=WORDS, crops=6, share=0.5).fit(MODEL, TRAIN)
    pixels, key = system.read(TEST).arrays["pixels"][0, 0], TEST[0].key
    z, module = system.view_features(pixels, key), system.module_
    context = torch.nn.Parameter(module.prompt.context.detach().clone())
    p = MODEL.vlm.logits(z, module.prompt(context)).softmax(-1)
    sure = torch.distributions.Categorical(p).entropy().argsort()[:3]
    torch.distributions.Categorical(p[sure].mean(0)).entropy().backward()
    torch.optim.AdamW([context], lr=5e-3, weight_decay=0.01).step()
    expected = MODEL.vlm.logits(z[:1], module.prompt(context))[0]
    assert torch.allclose(system.adapted(module, pixels, key), expected, atol=1e-3)


def test_entropy_of_the_mean():
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    assert entropy_of_mean(p.log()).item() == pytest.approx(np.log(2), abs=1e-6)
    assert entropy_of_mean(p[:1].log()).item() == pytest.approx(-(0.9 * np.log(0.9) + 0.1 * np.log(0.1)), abs=1e-6)
