from dataclasses import replace

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from emblema.encoders.block import attend
from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.lora import LoRA

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares()


def fitted(lr=0.01, **settings):
    system = LoRA(**settings)
    system.optim = replace(system.optim, steps=3, lr=lr, batch_size=8, precision="fp32")
    return system.fit(MODEL, DATA.split("train"))


class Separate(nn.Module):
    """An attention whose three projections are modules of their own, as peft wants them."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention
        for name, weight, bias in zip("qkv", attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3)):
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.weight.data, linear.bias.data = weight.detach().clone(), bias.detach().clone()
            setattr(self, name, linear)

    def forward(self, x):
        q, k, v = (self.attention.split(layer(x)) for layer in (self.q, self.k, self.v))
        return self.attention.out(self.attention.merge(attend(q, k, v)))


def test_every_update_is_pefts():
    module = fitted(rank=3, alpha=2.0, projections="qv").module_
    for side in ("image", "text"):
        for i in (0, 1):
            separate = Separate(getattr(MODEL.vlm, side).blocks[i].attention)
            config = LoraConfig(r=3, lora_alpha=2.0, target_modules=["q", "v"], lora_dropout=0.0)
            theirs = inject_adapter_in_model(config, separate).eval()
            ours = module.updates[f"{side}/blocks/{i}/attention/qkv/weight"]
            for j, name in enumerate("qv"):
                adapted = getattr(theirs, name)
                adapted.lora_A["default"].weight.data = ours.down.data[j]
                adapted.lora_B["default"].weight.data = ours.up.data[j]
            x = torch.randn(2, 5, 64)
            found = getattr(module.vlm, side).blocks[i].attention(x)
            assert ours.up.abs().max() > 0 and torch.allclose(found, theirs(x), atol=1e-5)


def test_no_step_is_zero_shot():
    system, test = fitted(lr=0.0), DATA.split("test")
    z = system.read(test).arrays["pooled"][0]
    expected = MODEL.vlm.logits(z, system.module_.hand)
    assert torch.allclose(system.predict(test), expected, atol=1e-4)


def test_few_parameters():
    module = fitted(rank=2).module_
    assert sum(p.numel() for p in module.parameters()) == 2 * 2 * 2 * (2 * 2 * 64)  # towers, layers, q and v, A and B
