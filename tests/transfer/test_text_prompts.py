"""Learnt words: every coupling at zero is CoOp."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA

from emblema.core.errors import BadData, NoSuchDoor
from emblema.encoders.resnet import ResNetConfig
from emblema.engine.features import fingerprint
from emblema.engine.optimise import lr_at
from emblema.parts.prompts import hand_written
from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.base import coop_recipe
from emblema.transfer.cocoop import CoCoOp
from emblema.transfer.coop import CoOp
from emblema.transfer.kgcoop import KgCoOp
from emblema.transfer.lasp import LASP, with_norms
from emblema.transfer.prograd import ProGrad, aligned
from emblema.transfer.subpt import SubPT, directions, other_names

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
    system = fit(SubPT(context_length=2, early=0.3, rank=1), weight_decay=0.0, steps=27)
    first = fit(SubPT(context_length=2, early=0.3, rank=1), weight_decay=0.0, steps=27)
    start, kept = first.explored(first.build(MODEL.vlm, DATA.class_names), first.read(TRAIN))
    assert kept.shape[1] == start.numel()
    moved, basis = system.module_.prompt.context.detach().flatten(), system.module_.basis
    batch = next(system.read(TRAIN).in_order(8))
    system.backward(system.module_, system.losses(system.module_, batch))
    grad = system.module_.prompt.context.grad.flatten()
    assert torch.allclose(basis.T @ (basis @ grad), grad, atol=1e-6) and moved.isfinite().all()


def test_subpt_with_a_full_basis_projects_nothing():
    system = fit(SubPT(context_length=2, early=0.3, rank=1))
    system.module_.basis = torch.eye(system.module_.prompt.context.numel())
    batch = next(system.read(TRAIN).in_order(8))
    system.backward(system.module_, system.losses(system.module_, batch))
    projected = system.module_.prompt.context.grad.clone()
    system.module_.zero_grad()
    system.losses(system.module_, batch)["cross_entropy"].backward()
    assert torch.allclose(projected, system.module_.prompt.context.grad, atol=1e-6)


def test_nfl_holds_other_classes_near_their_hand_written_vectors(tmp_path):
    (tmp_path / "names.txt").write_text("owl\n\nred square\nrobin\n")
    names, terms = str(tmp_path / "names.txt"), []
    system = SubPT(context_length=2, early=0.3, nfl=2.0, names=names)
    system = replace(system, optim=replace(system.optim, steps=3, precision="fp32", batch_size=8))
    module = system.build(MODEL.vlm, DATA.class_names)
    system.fit(MODEL, TRAIN, on_step=lambda step: terms.append(step.losses["others"]))
    assert len(terms) == 3 and 0 < terms[-1] < 4 and module.state_dict().keys() == system.module_.state_dict().keys()
    assert other_names(["owl"], names) == ["red square", "robin"] and len(other_names(["cat"], "")) == 100
    with pytest.raises(BadData, match="give other names"):
        other_names(["owl", "red square", "robin"], names)


def test_lasp_learns_norms_in_a_copy_at_a_tenth_of_the_rate():
    before = fingerprint(MODEL.vlm)
    still, frozen = (fit(LASP(words=WORDS, norms=norms), lr=0.0) for norms in (True, False))
    assert torch.allclose(still.predict(TEST), frozen.predict(TEST), atol=1e-4)
    system = fit(LASP(words=WORDS, norms=True))
    learnt = {n for n, p in system.module_.named_parameters() if p.requires_grad}
    norms = learnt - {"prompt.context", "correction"}
    assert norms and all(".norm" in n and system.rate(n) == 0.1 for n in norms)
    moved, ours = (dict(tower.named_parameters()) for tower in (system.module_.image, MODEL.vlm.image))
    assert {n for n in moved if not torch.equal(moved[n], ours[n])} == {n.removeprefix("image.") for n in norms}
    assert fingerprint(MODEL.vlm) == before
    with pytest.raises(NoSuchDoor):
        with_norms(ResNetConfig(layers=(1, 1, 1, 1), width=8, heads=4, image_size=32).build(16))


def test_lasp_with_a_template_as_prompt_classifies_it_among_itself():
    system = fit(LASP(words=WORDS, templates=("a photo of a {}.",), noise=0.0, weight=1.0), lr=0.0)
    module = system.module_
    module.hand = module.hand[:1]
    text = system.losses(module, replace(next(system.read(TRAIN).in_order(4)), generator=torch.Generator()))["text"]
    h = module.hand[0]
    assert torch.allclose(text, F.cross_entropy(MODEL.vlm.scale * h @ h.T, torch.arange(4)), atol=1e-4)


def test_the_squared_schedule_has_the_rates_of_kgcoops_posted_log():
    optim = coop_recipe(schedule="epochs-squared", warmup=0.0)
    rate = {epoch: lr_at((epoch - 1) * 4, 400, optim, epoch_steps=4) for epoch in (1, 91, 100)}
    assert rate == pytest.approx({1: 0.002, 91: 1.197732e-6, 100: 1.217413e-10}, rel=1e-5)
