import math

import pytest
import torch
from torch import nn
from toys import Pairs, Squares, canvas, view

from emblema.engine.diagnose import NotFinite, Watch
from emblema.engine.loader import Loader
from emblema.engine.optimise import Step, optimise


def step(number=1, losses=None, duplicates=0.0, unused=()):
    return Step(number, losses or {"image_text": 1.0}, 1e-3, 1.0, 64, 0.1, 0.0, duplicates, list(unused))


def failing(change, method=None):
    method = method or Pairs(dropout=0.0)
    torch.manual_seed(0)
    module = method.build()
    before = None
    change(module)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    loader = Loader(dataset=Squares(), batch_size=12, size=16, views=1, canvas=canvas, view=view)
    with pytest.raises(NotFinite) as caught:
        optimise(method, module, loader.iterate(4, 10), method.optim, total_steps=10, start=4)
    for name, value in module.state_dict().items():
        if "running" not in name and "batches" not in name:
            torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    return str(caught.value)


def test_the_first_bad_module_and_its_step_are_named():
    def change(module):
        hook = lambda _, inputs, output: output / 0
        module["vlm"].text.blocks[1].attention.out.register_forward_hook(hook)

    text = failing(change)
    assert text.startswith("step 5: module vlm.text.blocks.1.attention.out gave the first number that is not finite")
    assert "square-" in text and "likely" in text


def test_bad_weights_are_named():
    def change(module):
        with torch.no_grad():
            module["vlm"].image.blocks[0].norm1.weight[3] = math.nan

    assert "weights of vlm.image.blocks.0.norm1.weight are not finite" in failing(change)


def test_a_bad_loss_term_is_named():
    class Divides(Pairs):
        def compare(self, module, z, batch):
            return super().compare(module, z, batch) | {"ratio": z["image"].sum() / 0}

    assert "the loss term ratio did not" in failing(lambda m: None, Divides(dropout=0.0))


def test_a_bad_gradient_is_named():
    class Root(Pairs):
        def compare(self, module, z, batch):
            zero = (module["head"][0].weight * 0).square().sum()
            return super().compare(module, z, batch) | {"root": zero.sqrt()}

    assert "gradient of head.0.weight is not" in failing(lambda m: None, Root(dropout=0.0))


def test_a_loss_at_ln_batch_is_reported_once():
    watch = Watch(64)
    told = [w for i in range(200) for w in watch(step(i, {"image_text": math.log(64) + 0.01 * math.sin(i)}))]
    assert len(told) == 1 and "ln(batch) = 4.159" in told[0] and "paired wrongly" in told[0]
    watch = Watch(64)
    assert not [w for i in range(200) for w in watch(step(i, {"image_text": math.log(64) - 0.01 * i}))]


def test_a_real_stall_is_found():
    """Texts that say nothing: the loss falls to ln(batch) and stays."""

    class Silent(Squares):
        def __getitem__(self, i):
            record = super().__getitem__(i)
            return type(record)(key=record.key, image=record.image, text="a square")

    method = Pairs(dropout=0.0)
    torch.manual_seed(0)
    module = method.build()
    loader = Loader(dataset=Silent(), batch_size=12, size=16, views=1, canvas=canvas, view=view)
    watch, told = Watch(12, lambda: module["vlm"].scale.detach()), []
    optimise(
        method, module, loader.iterate(0, 120), method.optim, total_steps=120, on_step=lambda s: told.extend(watch(s))
    )
    assert any("ln(batch)" in t for t in told) and any("repeat another" in t for t in told)


def test_repeated_captions():
    watch = Watch(64)
    told = [w for i in range(100) for w in watch(step(i, duplicates=0.2))]
    assert len(told) == 1 and "20% of the captions" in told[0]
    assert not [w for i in range(100) for w in Watch(64)(step(i, duplicates=0.01))]


def test_logit_scale():
    def told(scales):
        values = iter(scales)
        watch = Watch(64, lambda: torch.tensor(next(values)))
        return [w for i in range(len(scales)) for w in watch(step(i))]

    assert "at its bound" in told([100.0] * 60)[0]
    assert "has not moved" in told([14.3] * 60)[0]
    assert not told([14.3 + 0.01 * i for i in range(60)])


def test_unused_parameters_are_named():
    class Spare(Pairs):
        def build(self):
            module = super().build()
            module["spare"] = nn.Linear(4, 4)
            return module

    method = Spare()
    module, told, watch = method.build(), [], Watch(12)
    loader = Loader(dataset=Squares(), batch_size=12, size=16, views=1, canvas=canvas, view=view)
    optimise(method, module, loader.iterate(0, 3), method.optim, total_steps=3, on_step=lambda s: told.extend(watch(s)))
    assert [t for t in told if "spare.weight, spare.bias" in t and t.startswith("2 parameters")]
