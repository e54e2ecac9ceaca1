"""The average follows parameters and running statistics, and survives a checkpoint."""

import pytest
import torch
from torch import nn

from emblema.parts.ema import EMA, warm_up


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_each_tensor_is_averaged():
    module = network()
    ema = EMA(module, 0.75)
    old = {k: v.clone() for k, v in ema.module.state_dict().items()}
    with torch.no_grad():
        for p in module.parameters():
            p.add_(1)
    module(torch.randn(5, 3))  # moves the running statistics too
    ema.update(module)
    for name, new in module.state_dict().items():
        expected = 0.75 * old[name] + 0.25 * new if new.is_floating_point() else new
        torch.testing.assert_close(ema.module.state_dict()[name], expected)


def test_a_tied_weight_is_averaged_once():
    module = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    module[1].weight = module[0].weight
    ema = EMA(module, 0.75)
    old = module[0].weight.detach().clone()
    with torch.no_grad():
        module[0].weight.add_(1)
    ema.update(module)
    torch.testing.assert_close(ema.module[1].weight, old + 0.25)


def test_no_gradient_no_training_mode_and_the_module_is_untouched():
    module = network().train()
    ema = EMA(module).train()
    assert not any(p.requires_grad for p in ema.parameters()) and not ema.module.training
    assert module.training and all(p.requires_grad for p in module.parameters())
    assert ema(torch.randn(2, 3)).shape == (2, 4)


def test_schedule_and_resume():
    module = network()
    ema = EMA(module, warm_up(0.999))
    ema.update(module), ema.update(module)
    other = EMA(network(), warm_up(0.999))
    other.load_state_dict(ema.state_dict())
    with torch.no_grad():
        module[0].weight.mul_(2)
    ema.update(module), other.update(module)
    assert int(other.updates) == 3
    assert all(torch.equal(a, b) for a, b in zip(ema.state_dict().values(), other.state_dict().values()))
    assert warm_up(0.999)(0) == 0.1 and warm_up(0.999)(10**6) == 0.999


def test_errors_teach():
    with pytest.raises(ValueError, match=r"0\.999"):
        EMA(network(), 1.0)
