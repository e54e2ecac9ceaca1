from dataclasses import replace

import pytest
import torch

from emblema.core.errors import BadData
from emblema.parts.prompts import hand_written
from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.coop import CoOp
from emblema.transfer.tpt import TPT, entropy, mean_of

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares(each=2)
TEST = DATA.split("test")
WORDS = "a photo of a "


def fitted(lr=5e-3, steps=1, **settings):
    system = TPT(**{"words": WORDS, "crops": 8, "share": 0.25, "steps": steps} | settings)
    return replace(system, optim=replace(system.optim, lr=lr)).fit(MODEL, TEST)


def zero_shot(system):
    z = system.read(TEST).arrays["pooled"][0]
    return MODEL.vlm.logits(z, hand_written(MODEL.vlm, TEST.class_names))


def test_a_rate_of_zero_is_zero_shot():
    system = fitted(lr=0.0)
    assert torch.allclose(system.predict(TEST), zero_shot(system), atol=1e-4)
    assert (fitted().predict(TEST) - zero_shot(system)).abs().max() > 1e-3


def test_the_entropy_of_the_mean_is_that_of_torch():
    p = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).softmax(-1)
    expected = torch.distributions.Categorical(probs=p.mean(0)).entropy()
    assert torch.allclose(entropy(mean_of(p.log())), expected, atol=1e-6)


@pytest.mark.parametrize(("crops", "steps"), [(8, 1), (8, 2), (1, 1)])
def test_the_answer_is_that_of_steps_of_torch_adamw(crops, steps):
    system = fitted(crops=crops, steps=steps)
    module, z = system.module_, system.read(TEST).arrays["pooled"][:, 3]  # [V, D]
    context = module.prompt.context.detach().clone().requires_grad_()
    adamw = torch.optim.AdamW([context], lr=5e-3, weight_decay=0.01)
    first = MODEL.vlm.logits(z, module.prompt(context)).softmax(-1)
    sure = torch.distributions.Categorical(probs=first).entropy().argsort()[: max(crops // 4, 1)]
    for _ in range(steps):
        p = MODEL.vlm.logits(z, module.prompt(context)).softmax(-1)[sure].mean(0)
        adamw.zero_grad()
        (-(p * p.log()).sum()).backward()
        adamw.step()
    expected = MODEL.vlm.logits(z[:1], module.prompt(context))[0]
    assert torch.allclose(system.predict(TEST)[3], expected, atol=1e-4)


def test_every_picture_starts_afresh_and_its_views_are_its_own():
    system = fitted()
    before = system.module_.prompt.context.clone()
    whole = system.predict(TEST)
    assert torch.allclose(system.predict(TEST.subset([5, 2])), whole[[5, 2]], atol=1e-5)
    assert torch.equal(system.module_.prompt.context, before)


def test_a_picture_that_cannot_be_read_has_no_answer_and_the_others_go_on():
    system, whole = fitted(), fitted().predict(TEST)
    broken = squares(each=2).split("test")
    broken.columns["image"][int(broken.index[2])] = b"no picture"
    with pytest.warns(UserWarning, match=r"no answer \(NaN\) for 1 of 8 pictures: test-1-0: not a picture"):
        found = system.predict(broken)
    others = [i for i in range(8) if i != 2]
    assert found[2].isnan().all() and torch.allclose(found[others], whole[others], atol=1e-5)


def test_it_may_begin_with_the_words_of_a_fitted_coop(tmp_path):
    coop = CoOp(context_length=3)
    coop = replace(coop, optim=replace(coop.optim, steps=2)).fit(MODEL, DATA.split("train"))
    coop.save(tmp_path / "coop")
    system = fitted(lr=0.0, start=str(tmp_path / "coop"))
    assert torch.allclose(system.predict(TEST), coop.predict(TEST), atol=1e-4)
    with pytest.raises(BadData, match="give the folder of a fitted CoOp"):
        fitted(start=str(tmp_path))
