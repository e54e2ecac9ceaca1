from dataclasses import replace

import pytest
import torch

from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.fine_tune import FineTune
from emblema.transfer.wise_ft import WiSEFT

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares()


def fitted(system, lr=1e-3):
    system.optim = replace(system.optim, steps=4, lr=lr, warmup=0, precision="fp32", batch_size=8)
    return system.fit(MODEL, DATA.split("train"))


@pytest.mark.parametrize("head_only", [False, True])
def test_the_ends_are_zero_shot_and_the_fine_tuned_model(head_only):
    system, test = fitted(WiSEFT(head_only=head_only)), DATA.split("test")
    inputs = system.read(test)
    zero_shot = MODEL.vlm.logits(inputs.arrays["pooled"][0], system.hand(MODEL.vlm, DATA.class_names))
    assert torch.allclose(system.at(0.0).predict(inputs), zero_shot, atol=1e-4)
    with torch.no_grad():
        tuned = torch.cat([system.module_(batch.x) for batch in inputs.in_order()])
    assert torch.allclose(system.at(1.0).predict(inputs), tuned, atol=1e-4)
    assert not torch.allclose(tuned, zero_shot, atol=1e-2)


def test_fine_tuned_is_fine_tune():
    wise, plain = fitted(WiSEFT(alpha=1.0)), fitted(FineTune())
    assert torch.allclose(wise.predict(DATA.split("test")), plain.predict(DATA.split("test")), atol=1e-4)


def test_with_the_head_alone_logits_are_linear_in_alpha():
    system = fitted(WiSEFT(head_only=True), lr=0.1)
    inputs = system.read(DATA.split("test"))
    start, end = system.at(0.0).predict(inputs), system.at(1.0).predict(inputs)
    for alpha in (0.1, 0.5, 0.8):
        assert torch.allclose(system.at(alpha).predict(inputs), (1 - alpha) * start + alpha * end, atol=1e-5)


def test_every_weight_is_between():
    system = fitted(WiSEFT(alpha=0.3))
    before, after = dict(MODEL.vlm.image.named_parameters()), dict(system.module_.tower.named_parameters())
    between = system.between(system.module_)
    for name, weight in before.items():
        assert torch.allclose(between[f"tower.{name}"], 0.7 * weight + 0.3 * after[name], atol=1e-6)
