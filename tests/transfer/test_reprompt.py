from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from emblema.parts.prompts import deep
from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.reprompt import RARE, RePrompt, mixed

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares()


def fitted(val=None, **settings):
    system = RePrompt(**settings)
    system.optim = replace(system.optim, steps=3, lr=0.05, warmup=0.0, batch_size=8, precision="fp32")
    return system.fit(MODEL, DATA.split("train"), val)


def test_the_vote_is_scikit_learns():
    system = fitted(neighbours=5)
    z = system.read(DATA.split("test")).arrays["pooled"][0]
    knn = KNeighborsClassifier(5, weights=lambda d: np.exp(-d), algorithm="brute")
    knn.fit(system.module_.keys.double().numpy(), DATA.split("train").labels)
    votes = system.module_.vote(*system.module_.near(z))
    assert torch.allclose(votes, torch.tensor(knn.predict_proba(z.double().numpy())).float(), atol=1e-4)


def test_without_retrieval_it_is_text_and_deep_image_prompts():
    system = fitted(retrieved=False, mix=0.0, beta=0.0)
    module, batch = system.module_, system.read(DATA.split("test")).batch(torch.arange(6))
    z = MODEL.vlm.encode_image(batch.x.tokens, deep(module.image, None))
    expected = MODEL.vlm.logits(z, module.text()).log_softmax(-1)
    assert torch.allclose(module(batch.x), expected, atol=1e-4)
    plain = F.cross_entropy(expected, batch.labels).item()
    assert system.losses(module, batch)["cross_entropy"].item() == pytest.approx(plain, abs=1e-4)


def test_retrieved_prompts_say_nothing_before_training():
    one, other = (RePrompt(retrieved=r).build(MODEL.vlm, DATA.class_names) for r in (True, False))
    other.load_state_dict(one.state_dict(), strict=False)
    x = fitted().read(DATA.split("test")).batch(torch.arange(4)).x
    for module in (one, other):
        module.keys, module.labels = x.pooled, torch.arange(4)
    assert torch.allclose(one(x), other(x), atol=1e-5)


def test_a_picture_does_not_find_itself():
    system = fitted(neighbours=3)
    train = system.read(DATA.split("train"))
    z, rows = train.arrays["pooled"][0], torch.arange(len(train))
    assert (system.module_.near(z)[1][:, 0] == rows).all()
    assert (system.module_.near(z, rows)[1] != rows[:, None]).all()


def test_the_loss_weighs_by_the_neighbours():
    system = fitted(beta=2.0)
    module, batch = system.module_, system.read(DATA.split("train")).batch(torch.arange(6))
    near = module.near(batch.x.pooled, torch.arange(6))
    p = module.vote(*near)[torch.arange(6), batch.labels].clamp(min=RARE)
    each = F.cross_entropy(module.answer(batch.x, near), batch.labels, reduction="none")
    expected = ((1 - 2 * p.log()) * each).mean().item()
    assert system.losses(module, batch)["cross_entropy"].item() == pytest.approx(expected, abs=1e-5)


def test_the_mixture_and_its_share():
    logits, votes = torch.randn(5, 3), torch.eye(3)[[0, 1, 2, 0, 1]]
    expected = 0.3 * votes + 0.7 * logits.softmax(-1)
    assert torch.allclose(mixed(logits, votes, torch.tensor(0.3)).exp(), expected, atol=1e-6)
    val = DATA.split("val")
    y = torch.tensor(val.labels)
    right = lambda s: (s.predict(val).argmax(-1) == y).float().mean()
    assert right(fitted(val)) >= max(right(fitted(mix=m)) for m in (0.0, 0.5, 0.9))


def test_without_the_vote_no_share_is_chosen():
    assert float(fitted(DATA.split("val"), mix=0.0).module_.mix) == 0
