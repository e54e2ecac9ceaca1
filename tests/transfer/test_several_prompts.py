"""Systems with several prompts a class: transport, distributions, samples, ensembles."""

from dataclasses import replace

import numpy as np
import ot
import torch
import torch.nn.functional as F

from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.coop import CoOp
from emblema.transfer.plot import PLOT
from emblema.transfer.proda import ProDA, bound
from emblema.transfer.upl import UPL, surest
from emblema.transfer.vpt import VPT, divergence

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares()
TRAIN, TEST = DATA.split("train"), DATA.split("test")


def quick(system, **changes):
    return replace(system, optim=replace(system.optim, **{"steps": 2, "precision": "fp32", "batch_size": 8} | changes))


def test_plot_weighs_cosines_by_the_plan_of_an_independent_solver():
    system = quick(PLOT(context_length=2, rounds=500)).fit(MODEL, TRAIN)
    x = system.read(TEST).batch(torch.arange(3)).x
    places, texts = x.patches.flatten(1, 2), torch.stack([t() for t in system.module_.texts]).detach()
    scores = system.module_.score(places, texts)
    for b in range(3):
        for c in range(4):
            cosine = (places[b] @ texts[:, c].T).double().numpy()
            n, m = cosine.shape
            plan = ot.sinkhorn(np.full(n, 1 / n), np.full(m, 1 / m), 1 - cosine, 0.1, stopThr=1e-12)
            assert abs((plan * cosine).sum() - scores[b, c].item()) < 1e-5


def test_plot_with_one_prompt_is_the_mean_cosine_and_a_few_rounds_are_enough():
    one = quick(PLOT(prompts=1, context_length=2)).fit(MODEL, TRAIN)
    x = one.read(TEST).batch(torch.arange(4)).x
    mean = (x.patches.flatten(1, 2) @ one.module_.texts[0]().T).mean(1)
    assert torch.allclose(one.module_(x), MODEL.vlm.scale * mean, atol=1e-4)
    four = quick(PLOT(context_length=2)).fit(MODEL, TRAIN)
    few = four.module_(x)
    four.module_.rounds = 500
    assert torch.allclose(few, four.module_(x), atol=1e-3 * float(MODEL.vlm.scale))


def test_proda_bounds_the_expected_loss_and_one_prompt_has_no_covariance():
    g = torch.Generator().manual_seed(0)
    z, w = F.normalize(torch.randn(5, 6, generator=g), dim=-1), torch.randn(400, 4, 6, generator=g) * 0.3
    y, scale = torch.tensor([0, 1, 2, 3, 0]), torch.tensor(4.0)
    sampled = torch.stack([F.cross_entropy(scale * z @ one.T, y, reduction="none") for one in w]).mean(0)
    above = F.cross_entropy(bound(z, w, y, scale), y, reduction="none")
    below = F.cross_entropy(bound(z, w, y, scale, covariance=False), y, reduction="none")
    # the samples stand for the Gaussian: independent dimensions, as the covariance of each dimension assumes
    assert (above > sampled).all() and (below < above).all()
    assert torch.allclose(bound(z, w[:1], y, scale), bound(z, w[:1], y, scale, covariance=False), atol=1e-6)
    own = (bound(z, w, y, scale) - bound(z, w, y, scale, covariance=False)).gather(1, y[:, None])
    assert own.abs().max() < 1e-5


def test_proda_with_one_prompt_behind_the_context_is_coop():
    coop = quick(CoOp(context_length=3)).fit(MODEL, TRAIN)
    proda = quick(ProDA(prompts=1, each_step=1, context_length=3)).fit(MODEL, TRAIN)
    proda.module_.prompts[0].layout = "end"
    with torch.no_grad():
        proda.module_.prompts[0].context.copy_(coop.module_.prompt.context)
    assert torch.allclose(coop.predict(TEST), proda.predict(TEST), atol=1e-4)


def test_upl_chooses_as_numpy_and_members_learn_alone():
    p = torch.rand(50, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
    label, sure = p.argmax(1).numpy(), p.max(1).values.numpy()
    expected = sorted(i for c in range(5) for i in sorted(np.where(label == c)[0], key=lambda i: -sure[i])[:3])
    assert surest(p, 3).tolist() == expected
    one = quick(UPL(members=1, context_length=2)).fit(MODEL, TRAIN)
    two = quick(UPL(members=2, context_length=2)).fit(MODEL, TRAIN)
    assert torch.allclose(one.module_.members[0].context, two.module_.members[0].context, atol=1e-6)


def test_upl_never_reads_a_label():
    columns = {k: v for k, v in TRAIN.columns.items() if k != "label"}
    nameless = type(TRAIN)(TRAIN.card, columns, TRAIN.class_names, index=TRAIN.index)
    with_labels = quick(UPL(members=1, context_length=2)).fit(MODEL, TRAIN).predict(TEST)
    assert torch.equal(quick(UPL(members=1, context_length=2)).fit(MODEL, nameless).predict(TEST), with_labels)


def test_upl_with_true_labels_and_all_pictures_is_coop():
    class Told(UPL):
        def learn(self, module, train, on_step=None):
            super(UPL, self).learn(module, train, on_step)

    told = quick(Told(members=1, context_length=2)).fit(MODEL, TRAIN)
    coop = quick(CoOp(context_length=2)).fit(MODEL, TRAIN)
    assert torch.allclose(told.module_.members[0].context, coop.module_.prompt.context, atol=1e-6)


def test_vpt_without_variance_is_the_shifted_prompt():
    system = quick(VPT(words="a photo of a ", samples=3)).fit(MODEL, TRAIN)
    module, x = system.module_, system.read(TEST).batch(torch.arange(4)).x
    torch.nn.init.zeros_(module.log_var[4].weight)
    torch.nn.init.constant_(module.log_var[4].bias, -80.0)
    shifted = [module.prompt(module.prompt.context + module.mean(z)) for z in x.pooled]
    logits = torch.stack([MODEL.vlm.scale * z @ t.T for z, t in zip(x.pooled, shifted)])
    assert torch.allclose(module(x), logits.log_softmax(-1), atol=1e-4)


def test_the_divergence_is_that_of_torch():
    mean, log_var = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    ours = torch.distributions.Normal(mean, (0.5 * log_var).exp())
    expected = torch.distributions.kl_divergence(ours, torch.distributions.Normal(0.0, 1.0)).mean(-1)
    assert torch.allclose(divergence(mean, log_var), expected, atol=1e-5)
