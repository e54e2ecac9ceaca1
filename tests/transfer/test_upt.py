from dataclasses import replace

import torch
from torch import nn

from emblema.encoders.block import QuickGELU
from emblema.parts.prompts import PromptedText, deep
from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.upt import UPT

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares()


def fitted(**settings):
    system = UPT(**settings)
    system.optim = replace(system.optim, steps=2, lr=0.05, warmup=0.0, batch_size=8, precision="fp32")
    return system.fit(MODEL, DATA.split("train"))


def test_without_the_block_it_is_independent_prompts():
    system = fitted(joint=0)
    module, x = system.module_, system.read(DATA.split("test")).batch(torch.arange(5)).x
    words = PromptedText(MODEL.vlm, DATA.class_names, 4)(module.text.context)
    z = MODEL.vlm.encode_image(x.tokens, deep(module.image, None))
    assert torch.allclose(module(x), MODEL.vlm.logits(z, words), atol=1e-5)


def test_the_block_is_torchs_encoder_layer():
    module = fitted().module_
    block, layer = module.block, nn.TransformerEncoderLayer(128, 1, 512, 0.0, QuickGELU(), norm_first=True)
    layer.self_attn.in_proj_weight.data, layer.self_attn.in_proj_bias.data = (
        block.attention.qkv.weight.data,
        block.attention.qkv.bias.data,
    )
    pairs = [
        (layer.self_attn.out_proj, block.attention.out),
        (layer.linear1, block.mlp[0]),
        (layer.linear2, block.mlp[2]),
        (layer.norm1, block.norm1),
        (layer.norm2, block.norm2),
    ]
    for ours, theirs in pairs:
        ours.load_state_dict(theirs.state_dict())
    (enter_t, enter_v), (leave_t, leave_v) = module.enter, module.leave
    one = torch.cat([enter_t(module.text.context), enter_v(torch.cat(list(module.image)))])
    out = layer.train()(one[:, None])[:, 0]
    words, behind, image = module.prompts()
    assert torch.allclose(words, leave_t(out[:4]), atol=1e-5) and len(behind) == 0
    assert torch.allclose(torch.cat(list(image)), leave_v(out[4:]), atol=1e-5) and image.shape == (2, 4, 64)


def test_each_side_learns_from_the_other():
    system = fitted()
    module, x = system.module_, system.read(DATA.split("test")).batch(torch.arange(5)).x
    module.encode_image(x.tokens).sum().backward()
    assert module.text.context.grad.abs().max() > 0
    module.zero_grad(set_to_none=True)
    module.encode_text().sum().backward()
    assert module.image.grad.abs().max() > 0
