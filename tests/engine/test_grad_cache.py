from dataclasses import dataclass

import pytest
import torch
from toys import Pairs, Squares, canvas, view

from emblema.core.errors import EmblemaError
from emblema.core.method import Method
from emblema.engine.grad_cache import cached_gradients
from emblema.engine.loader import Loader
from emblema.engine.precision import autocast


def batch(n=24):
    loader = Loader(dataset=Squares(), batch_size=n, size=16, views=1, canvas=canvas, view=view)
    return loader.batch(1)


def in_full(method, module, batch, chunk=None):
    """With one graph. With `chunk`, samples are encoded in the order of the cache, so dropout draws the same."""
    chunk = chunk or len(batch)
    parts = [(i, i + chunk) for i in range(0, len(batch), chunk)]
    z = {k: torch.cat([f(batch.rows(*p)) for p in parts]) for k, f in method.encoders(module).items()}
    losses = method.compare(module, z, batch)
    sum(losses.values()).backward()
    return losses


def gradients(make, method, chunk, precision="fp32", **options):
    torch.manual_seed(0)
    module = method.build().train()
    torch.manual_seed(1)
    if make == "cache":
        losses = cached_gradients(chunk, lambda: autocast(precision))(method, module, batch(**options))
    else:
        with autocast(precision):
            losses = in_full(method, module, batch(**options), chunk)
    after = torch.rand(1)
    return losses, {n: p.grad for n, p in module.named_parameters()}, dict(module.named_buffers()), after


def relative(a, b):
    return ((a - b).norm() / b.norm().clamp(min=1e-8)).item()


@pytest.mark.parametrize("chunk", [1, 5, 8, 24, 100])
def test_equals_the_full_batch(chunk):
    method = Pairs(dropout=0.0)
    losses, cached, buffers, _ = gradients("cache", method, chunk)
    expected, full, full_buffers, _ = gradients("full", method, None)
    for name in expected:
        assert relative(losses[name], expected[name]) < 1e-6, name
    norm = torch.stack([g.norm() for g in full.values()]).norm()
    for name in full:
        assert (cached[name] - full[name]).norm() < 1e-6 * norm, name  # round-off of sums in another order
        assert (cached[name] - full[name]).norm() < 2e-5 * full[name].norm() + 1e-7 * norm, name
    scale = next(n for n in cached if "logit_scale" in n)
    assert cached[scale].abs() > 0 and relative(cached[scale], full[scale]) < 1e-5
    for name in full_buffers:  # the head's batch norm saw one batch, once
        torch.testing.assert_close(buffers[name], full_buffers[name])


@pytest.mark.parametrize("chunk", [8, 24])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_dropout_and_the_steps_noise_are_replayed(chunk, precision):
    method = Pairs(dropout=0.3, noise=0.2)
    losses, cached, _, after = gradients("cache", method, chunk, precision)
    expected, full, _, expected_after = gradients("full", method, chunk, precision)
    tolerance = 1e-6 if precision == "fp32" else 2e-2
    norm = torch.stack([g.norm() for g in full.values()]).norm()
    for name in expected:
        assert relative(losses[name], expected[name]) < tolerance, name
    for name in full:
        assert (cached[name] - full[name]).norm() < tolerance * norm, name
    assert torch.equal(after, expected_after)


def test_a_frozen_tower_is_skipped():
    method = Pairs()
    module = method.build().train()
    module["vlm"].text.requires_grad_(False)
    cached_gradients(8, lambda: autocast("fp32"))(method, module, batch())
    assert all(p.grad is None for p in module["vlm"].text.parameters())
    assert all(p.grad is not None for p in module["vlm"].image.parameters())


def test_batch_norm_in_an_encoder_is_refused():
    method = Pairs(batch_norm=True)
    module = method.build().train()
    run = cached_gradients(8, lambda: autocast("fp32"))
    with pytest.raises(EmblemaError, match=r"vlm.image.stem.1 normalises over the batch"):
        run(method, module, batch())
    module["vlm"].image.stem.eval()  # frozen statistics are fine
    run(method, module, batch())


def test_a_method_with_losses_alone_is_refused():
    @dataclass
    class Whole(Pairs):
        def losses(self, module, batch):
            return super().losses(module, batch)

    class Plain(Method):
        def losses(self, module, batch):
            return {}

    for method in (Whole(), Plain()):
        with pytest.raises(EmblemaError, match="defines losses"):
            cached_gradients(8, lambda: autocast("fp32"))(method, torch.nn.ModuleDict(), batch())
