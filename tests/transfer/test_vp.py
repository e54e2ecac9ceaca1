from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.vp import VP, PixelPrompt

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares()


def built(**settings):
    torch.manual_seed(0)
    return VP(**settings).build(MODEL.vlm, DATA.class_names)


def some():
    system = VP()
    system.optim = replace(system.optim, steps=1, lr=0.0)
    return system.fit(MODEL, DATA.split("train")).read(DATA.split("test")).batch(torch.arange(6))


@pytest.mark.parametrize("shape", ["frame", "patch", "random"])
def test_nothing_added_is_zero_shot(shape):
    module, batch = built(shape=shape), some()
    for side in module.sides:
        side.data.zero_()
    z = MODEL.vlm.encode_image(batch.x.pixels)
    assert torch.allclose(module(batch.x), MODEL.vlm.logits(z, module.hand), atol=1e-5)


def test_the_gradient_is_that_of_the_pixels_inside_the_frame():
    module, batch = built(), some()
    images = (MODEL.vlm.image.normalise(batch.x.pixels) + module.prompt()).detach().requires_grad_()
    F.cross_entropy(MODEL.vlm.logits(MODEL.vlm.encode_image(images), module.hand), batch.labels).backward()
    F.cross_entropy(module(batch.x), batch.labels).backward()
    whole, p = images.grad.sum(0), 4  # 30 * 32 / 224
    expected = [whole[:, :p], whole[:, -p:], whole[:, p:-p, :p], whole[:, p:-p, -p:]]
    for side, gradient in zip(module.sides, expected):
        assert torch.allclose(side.grad, gradient, atol=1e-7)
    assert (module.prompt()[:, p:-p, p:-p] == 0).all()


def test_as_many_parameters_as_published():
    class Image:
        image_size = 224

    class Model:
        image = Image()

    module = PixelPrompt(Model(), torch.zeros(2, 4), "frame", 30)
    assert sum(side.numel() for side in module.sides) == 2 * 3 * 30 * 224 + 2 * 3 * 164 * 30 == 69_840


def test_a_random_patch_stays_inside_the_picture():
    module = built(shape="random", width=70)  # 10 of 32 pixels
    for place in (torch.zeros(2), torch.full((2,), 0.999), torch.tensor([0.999, 0.0])):
        inside = module.prompt(place).abs().sum(0) > 0
        y, x = (place * 23).long().tolist()
        assert inside[y : y + 10, x : x + 10].all() and inside.sum() == 100


def test_a_frame_learns():
    system = VP()
    system.optim = replace(system.optim, epochs=60.0, lr=40.0, batch_size=24)
    losses = []
    system.fit(MODEL, DATA.split("train"), on_step=lambda step: losses.append(step.loss))
    assert losses[-1] < 0.9 * losses[0]
