from dataclasses import replace

import torch
import torch.nn.functional as F

from emblema.encoders.bert import BertConfig
from emblema.frameworks.two_tower import ARCHITECTURES
from emblema.frameworks.vlm import frozen
from emblema.testing import ByteTokenizer, tiny_model, tiny_vlm
from emblema.testing.squares import squares
from emblema.transfer.rpo import RPO, read_only

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares()


def fitted():
    system = RPO(prompts=5)
    system.optim = replace(system.optim, steps=3, lr=0.5, warmup=0.0, precision="fp32")
    return system.fit(MODEL, DATA.split("train"))


def test_what_was_there_leaves_every_layer_as_without_prompts():
    system, vlm = fitted(), MODEL.vlm
    module, x = system.module_, system.read(DATA.split("test")).batch(torch.arange(4)).x
    sides = [(vlm.image, x.tokens, module.of_image)] + [(vlm.text, t, module.of_text) for _, t in module.groups]
    for tower, tokens, prompts in sides:
        prompted, plain = (entering(tower, tokens, edit) for edit in (read_only(prompts), lambda i, t: t))
        for a, b in zip(prompted, plain):
            assert a.shape[1] == b.shape[1] + 5 and torch.allclose(a[:, :-5], b, atol=1e-5)


def entering(tower, tokens, edit):
    """What enters each layer, and what leaves the last."""
    seen = []

    def watch(i, t):
        seen.append(edit(i, t))
        return seen[-1]

    last = tower.transform(tokens, watch)
    return [t.x for t in (*seen, last)]


def test_prompts_do_not_read_each_other():
    system = fitted()
    module, x = system.module_, system.read(DATA.split("test")).batch(torch.arange(4)).x
    image, text = module.encode_image(x.tokens), module.encode_text()
    for parameter in (module.of_image, module.of_text):
        parameter.data[1:] += torch.randn(4, parameter.shape[1])
    assert torch.allclose(module.encode_image(x.tokens)[0], image[0], atol=1e-5)
    assert torch.allclose(module.encode_text()[0], text[0], atol=1e-5)


def test_a_logit_is_the_mean_over_pairs():
    system = fitted()
    module, x = system.module_, system.read(DATA.split("test")).batch(torch.arange(4)).x
    image, text = module.encode_image(x.tokens), module.encode_text()
    pairs = [MODEL.vlm.scale * F.normalize(v, dim=-1) @ F.normalize(t, dim=-1).T for v, t in zip(image, text)]
    assert torch.allclose(module(x), torch.stack(pairs).mean(0), atol=1e-4)


def test_a_prompt_that_is_the_class_token_leaves_the_first_layer_as_it_does():
    vlm, x = tiny_vlm(), fitted().read(DATA.split("test")).batch(torch.arange(4)).x
    after = entering(vlm.image, x.tokens.rows(0, 1), read_only(x.tokens.x[:1, 0].detach()))[1]
    assert torch.allclose(after[:, -1], after[:, 0], atol=1e-6)


def test_a_bidirectional_text_tower_keeps_its_words_too():
    bert = BertConfig(vocab_size=300, context_length=48, width=32, depth=2, heads=2, pool="mean")
    vlm = frozen(replace(ARCHITECTURES["tiny"], text=bert).build())
    vlm.text.tokenizer = ByteTokenizer()
    module = RPO(prompts=3).build(vlm, ["cat", "elephant"])
    before = module.encode_text()
    module.of_text.data[2] += 1.0
    assert torch.allclose(module.encode_text()[:2], before[:2], atol=1e-6)
    alone = RPO(prompts=3).build(vlm, ["elephant"])
    alone.of_text.data.copy_(module.of_text)
    assert torch.allclose(alone.encode_text()[:, 0], module.encode_text()[:, 1], atol=1e-6)
