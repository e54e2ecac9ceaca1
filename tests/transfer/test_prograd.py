from dataclasses import replace

import torch
import torch.nn.functional as F

from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.coop import CoOp
from emblema.transfer.prograd import ProGrad, aligned

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares()
TRAIN, TEST = DATA.split("train"), DATA.split("test")


def quick(system, **changes):
    recipe = {"steps": 3, "precision": "fp32", "batch_size": 8, "warmup": 0.0, "lr": 0.05}
    return replace(system, optim=replace(system.optim, **recipe | changes))


def test_nothing_is_left_against_the_general_direction():
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        g_d, g_g = torch.randn(2, 4, 8, generator=g, dtype=torch.float64)
        found = aligned(g_d, g_g)
        if (g_d * g_g).sum() < 0:
            assert (found * g_g).sum().abs() < 1e-12
            assert torch.allclose(found, g_d - (g_d * g_g).sum() / g_g.norm() ** 2 * g_g)
        else:
            assert torch.equal(found, g_d)
        assert torch.equal(aligned(g_d, g_g, 0.0), g_d)
    assert torch.equal(aligned(g_d, torch.zeros_like(g_d)), g_d)


def test_lambda_zero_is_coop():
    ours = quick(ProGrad(weight=0.0, context_length=2)).fit(MODEL, TRAIN)
    coop = quick(CoOp(context_length=2)).fit(MODEL, TRAIN)
    assert torch.allclose(ours.module_.prompt.context, coop.module_.prompt.context, atol=1e-6)


def test_the_gradient_of_a_step_is_the_turned_one():
    system = quick(ProGrad(context_length=2, temperature=2.0))
    module = system.fit(MODEL, TRAIN).module_
    batch = next(iter(system.read(TRAIN).batches(system.optim, 1)))
    context = module.prompt.context
    student = module(batch.x)
    teacher = (MODEL.vlm.logits(batch.x.pooled, module.hand) / 2).softmax(-1)
    (g_d,) = torch.autograd.grad(F.cross_entropy(student, batch.labels), context, retain_graph=True)
    soft = F.kl_div((student / 2).log_softmax(-1), teacher, reduction="batchmean") * 4  # the same gradient
    (g_g,) = torch.autograd.grad(soft, context)
    system.backward(module, system.losses(module, batch))
    assert torch.allclose(context.grad, aligned(g_d, g_g), atol=1e-6)
