from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from emblema.parts.prompts import deep
from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.promptsrc import PromptSRC, gaussian

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares()
FREE = {"image_weight": 0.0, "text_weight": 0.0, "logit_weight": 0.0, "centre": 0.0}


def fitted(epochs=2.0, on_step=None, **settings):
    system = PromptSRC(words="a photo of a ", **settings)
    system.optim = replace(system.optim, epochs=epochs, lr=0.05, warmup=0.0, batch_size=8, precision="fp32")
    return system.fit(MODEL, DATA.split("train"), on_step=on_step)


def test_terms_written_out():
    system = fitted(image_weight=2.0, text_weight=3.0, logit_weight=5.0)
    batch, module = system.read(DATA.split("test")).batch(torch.arange(7)), system.module_
    losses, vlm = system.losses(module, batch), MODEL.vlm
    z = vlm.encode_image(batch.x.tokens, deep(module.image, None))
    t = module.text(edit=deep(module.deep_text, 1, start=1))
    logits, frozen = vlm.scale * z @ t.T, vlm.scale * vlm.encode_image(batch.x.tokens) @ module.hand.T
    kl = F.kl_div(logits.log_softmax(1), frozen.log_softmax(1), reduction="sum", log_target=True) / logits.numel()
    expected = {
        "cross_entropy": F.cross_entropy(logits, batch.labels),
        "image": 2 * F.l1_loss(z, vlm.encode_image(batch.x.tokens)),
        "text": 3 * F.l1_loss(t, module.hand),
        "logits": 5 * kl,
    }
    for name, term in expected.items():
        assert losses[name].item() == pytest.approx(term.item(), abs=1e-5), name


def test_without_regularisers_it_is_independent_prompts():
    system = fitted(**FREE)
    batch = system.read(DATA.split("test")).batch(torch.arange(7))
    total = sum(system.losses(system.module_, batch).values())
    assert total.item() == pytest.approx(F.cross_entropy(system.module_(batch.x), batch.labels).item(), abs=1e-6)


def test_prompts_are_the_weighted_mean_of_those_after_each_epoch():
    after = []
    for epochs in (1, 2, 3):  # a constant rate: the first epochs of a longer run are the shorter run
        system = PromptSRC(words="a photo of a ", **FREE)
        system.optim = replace(
            system.optim, epochs=float(epochs), lr=0.05, schedule="constant", batch_size=8, precision="fp32"
        )
        after.append(system.fit(MODEL, DATA.split("train")).module_.image.detach())
    system.centre, system.spread = 0.5, 1.5
    mean = system.fit(MODEL, DATA.split("train")).module_.image
    weights = torch.exp(-((torch.tensor([1.0, 2.0, 3.0]) - 1.5) ** 2) / (2 * 1.5**2))
    expected = sum(w * p for w, p in zip(weights / weights.sum(), after))
    assert torch.allclose(mean, expected, atol=1e-6)


def test_weights_of_the_epochs():
    e = torch.arange(1.0, 21.0)
    published = torch.exp(-((e - 15) ** 2) / 2)
    assert torch.allclose(gaussian(20, 0.75, 1.0), published / published.sum(), atol=1e-7)
    assert gaussian(3, 0.0, 1.0).tolist() == [0.0, 0.0, 1.0]
