from dataclasses import replace

import torch

from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.cocoop import CoCoOp
from emblema.transfer.coop import CoOp

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares()
TRAIN, TEST = DATA.split("train"), DATA.split("test")


def quick(system, **changes):
    recipe = {"steps": 3, "precision": "fp32", "batch_size": 8, "warmup": 0.0, "lr": 0.05}
    return replace(system, optim=replace(system.optim, **recipe | changes))


class Unshifted(CoCoOp):
    """With a last layer of zeros that is not learnt."""

    def build(self, vlm, class_names):
        module = super().build(vlm, class_names)
        for parameter in module.shift[2].parameters():
            torch.nn.init.zeros_(parameter).requires_grad_(False)
        return module


def test_without_shift_it_is_coop_before_and_after_training():
    for words in ("", "a photo of a "):
        ours = quick(Unshifted(words=words)).fit(MODEL, TRAIN)
        coop = quick(CoOp(context_length=4, words=words)).fit(MODEL, TRAIN)
        assert torch.allclose(ours.module_.prompt.context, coop.module_.prompt.context, atol=1e-5)
        assert torch.allclose(ours.predict(TEST), coop.predict(TEST), atol=1e-4)


def test_a_batch_of_two_is_two_batches_of_one():
    system = quick(CoCoOp()).fit(MODEL, TRAIN)
    inputs = system.read(TEST)
    both = system.module_(inputs.batch(torch.tensor([0, 7])).x)
    each = [system.module_(inputs.batch(torch.tensor([i])).x) for i in (0, 7)]
    assert torch.allclose(both, torch.cat(each), atol=1e-5)


def test_every_picture_has_a_prompt_of_its_own():
    system = quick(CoCoOp()).fit(MODEL, TRAIN)
    module, x = system.module_, system.read(TEST).batch(torch.tensor([0, 7])).x
    shift = module.shift[2](module.shift[0](x.pooled).clamp(min=0))
    for i in range(2):
        text = module.prompt(module.prompt.context + shift[i])
        assert torch.allclose(module(x)[i], MODEL.vlm.scale * x.pooled[i] @ text.T, atol=1e-4)
    assert (shift[0] - shift[1]).abs().max() > 1e-4
