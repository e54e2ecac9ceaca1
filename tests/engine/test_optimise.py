import math

import pytest
import torch
from torch import nn
from toys import Pairs, Squares, canvas, view

from emblema.core.method import Optim
from emblema.engine.loader import Loader
from emblema.engine.optimise import State, lr_at, optimise, optimiser


def batches(start, stop, **changes):
    settings = {
        "dataset": Squares(),
        "batch_size": 12,
        "size": 16,
        "views": 1,
        "canvas": canvas,
        "view": view,
    } | changes
    return (Loader(**settings).batch(s) for s in range(start, stop))


def built(method):
    torch.manual_seed(0)
    return method.build()


def test_schedule():
    optim = Optim(lr=2.0, warmup=0.1, final_lr=0.1)
    rates = [lr_at(s, 100, optim) for s in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == 2.0 and rates[55] == pytest.approx(2 * (0.1 + 0.9 * 0.5))
    assert all(a >= b for a, b in zip(rates[10:], rates[11:])) and rates[-1] == pytest.approx(0.2, abs=2e-3)
    assert lr_at(2, 100, Optim(lr=1.0, warmup=4)) == 0.75
    assert lr_at(0, 10, Optim(lr=1.0, warmup=0)) == 1.0


def test_no_decay_for_biases_norms_scales_and_positions():
    module = built(Pairs(batch_norm=True))
    groups = optimiser(module, Optim(weight_decay=0.3)).param_groups
    names = {p: n for n, p in module.named_parameters()}
    with_decay, without = ({names[p] for p in g["params"]} for g in groups)
    assert groups[0]["weight_decay"] == 0.3 and groups[1]["weight_decay"] == 0
    assert with_decay | without == set(names.values())
    assert {n for n in names.values() if "position" in n or "norm" in n or "bias" in n or "scale" in n} <= without
    assert {"vlm.text.words.weight", "vlm.image.projection", "vlm.image.blocks.0.attention.qkv.weight"} <= with_decay


def test_one_step_is_adamw_of_the_clipped_sum_of_terms():
    method = Pairs(dropout=0.0, optim=Optim(lr=0.01, warmup=0, clip_norm=0.5, precision="fp32", weight_decay=0.2))
    ours, theirs = built(method), built(method)
    batch = next(batches(0, 1))
    seen = []
    optimise(method, ours, [batch], method.optim, total_steps=5, on_step=seen.append)
    losses = method.losses(theirs.train(), batch)
    sum(losses.values()).backward()
    norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
    decayed = [p for n, p in theirs.named_parameters() if p.ndim > 1 and "positions" not in n]
    plain = [p for n, p in theirs.named_parameters() if not (p.ndim > 1 and "positions" not in n)]
    groups = [{"params": decayed, "weight_decay": 0.2}, {"params": plain, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.98), eps=1e-6, foreach=False).step()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=name)
    assert seen[0].grad_norm == pytest.approx(norm.item(), rel=1e-5)
    assert seen[0].losses == pytest.approx({k: v.item() for k, v in losses.items()})


def test_only_what_asks_for_a_gradient_changes():
    method = Pairs()
    module = built(method)
    module["vlm"].image.requires_grad_(False)
    before = {n: p.clone() for n, p in module.named_parameters()}
    optimise(method, module, batches(0, 2), method.optim, total_steps=2)
    for name, p in module.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith("vlm.image"), name
    with pytest.raises(ValueError, match="nothing to learn"):
        State(module.requires_grad_(False), method.optim)


def test_after_step_and_progress():
    method, seen = Pairs(), []
    method.after_step = lambda module: seen.append("after")
    stream = list(batches(0, 4))
    optimise(method, built(method), stream, method.optim, total_steps=4)
    assert seen == ["after"] * 4 and [b.progress for b in stream] == [0, 0.25, 0.5, 0.75]


def test_moving_average():
    method = Pairs(optim=Optim(lr=0.01, precision="fp32", ema=0.7))
    module = built(method)
    state = State(module, method.optim)
    average = {n: p.detach().clone() for n, p in module.named_parameters()}

    def follow(_):
        for n, p in module.named_parameters():
            average[n].lerp_(p.detach(), 0.3)

    optimise(method, module, batches(0, 4), method.optim, total_steps=4, state=state, on_step=follow)
    for name, p in state.ema.module.named_parameters():
        torch.testing.assert_close(p, average[name], msg=name)
        assert not p.requires_grad


def test_the_callers_random_state_is_untouched():
    torch.manual_seed(3)
    expected = torch.get_rng_state()
    method = Pairs()
    module = method.build()
    torch.set_rng_state(expected)
    optimise(method, module, batches(0, 2), method.optim, total_steps=2)
    assert torch.equal(torch.get_rng_state(), expected)


def test_patches_are_dropped_while_training_only():
    method = Pairs(optim=Optim(precision="fp32", patch_drop=0.5))
    module, lengths = built(method), []
    tower = module["vlm"].image
    tower.blocks[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    tower.eval()
    images = next(batches(0, 1)).images
    before = tower.encode(images)
    optimise(method, module, batches(0, 1), method.optim, total_steps=1)
    assert lengths == [5, 3, 3]  # [CLS] and 2 of 4 patches, for the image and its further view
    fresh = built(method)
    fresh["vlm"].image.patch_drop = 0.5
    assert torch.equal(fresh.eval()["vlm"].image.encode(images), before)
    tower.train()
    assert tower.embed(images).x.shape[1] == 5  # off after the loop


def test_bf16_follows_fp32():
    curves = {}
    for precision in ("fp32", "bf16"):
        method = Pairs(dropout=0.0, optim=Optim(lr=2e-3, precision=precision))
        steps = []
        optimise(method, built(method), batches(0, 60), method.optim, total_steps=60, on_step=steps.append)
        curves[precision] = torch.tensor([s.loss for s in steps])
        assert all(math.isfinite(s.grad_norm) for s in steps)
    assert curves["fp32"][-10:].mean() < curves["fp32"][:5].mean() - 0.3
    assert (curves["fp32"] - curves["bf16"])[-10:].mean().abs() < 0.15
