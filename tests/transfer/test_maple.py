from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from emblema.core.errors import NoSuchDoor
from emblema.encoders.backbone import BackboneConfig
from emblema.encoders.resnet import ResNetConfig
from emblema.frameworks.two_tower import ARCHITECTURES
from emblema.frameworks.vlm import frozen
from emblema.parts.prompts import hand_written
from emblema.testing import ByteTokenizer, tiny_model, tiny_vlm
from emblema.testing.squares import squares
from emblema.transfer.maple import MaPLe

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares()


def fitted(steps=2, lr=0.05, **settings):
    system = MaPLe(words="a photo ", **settings)
    system.optim = replace(system.optim, steps=steps, lr=lr, warmup=0.0, batch_size=8, precision="fp32")
    return system.fit(MODEL, DATA.split("train"))


def test_without_layers_and_steps_it_is_zero_shot():
    system = fitted(lr=0.0, depth=0)
    z = system.read(DATA.split("test")).arrays["pooled"][0]
    expected = MODEL.vlm.logits(z, hand_written(MODEL.vlm, DATA.class_names, ["a photo of a {}."]))
    assert torch.allclose(system.predict(DATA.split("test")), expected, atol=1e-4)


def test_both_towers_as_loops_over_their_layers():
    system, vlm = fitted(), MODEL.vlm
    module, x = system.module_, system.read(DATA.split("test")).batch(torch.arange(5)).x
    words, n = module.text.context, len(module.text.context)
    rows = [words, *module.deep_text]
    tokens = x.tokens.x
    for i, block in enumerate(vlm.image.blocks):
        prompt = F.linear(rows[i], module.couple[i].weight, module.couple[i].bias).expand(5, -1, -1)
        tokens = torch.cat([tokens if i == 0 else tokens[:, :-n], prompt], 1)
        tokens = block(vlm.image.norm_before(tokens) if i == 0 else tokens)
    z = F.normalize(vlm.image.norm(tokens[:, 0]) @ vlm.image.projection, dim=-1)
    texts = []
    for name in DATA.class_names:
        embedded = vlm.text.embed([f"of a {name}."]).x[0]
        text = torch.cat([embedded[:1], words, embedded[1:]])
        text = (text + vlm.text.positions[: len(text)])[None]
        mask = torch.ones(text.shape[1], text.shape[1], dtype=torch.bool).tril()
        for i, block in enumerate(vlm.text.blocks):
            if i:
                text = torch.cat([text[:, :1], rows[i][None], text[:, 1 + n :]], 1)
            text = block(text, mask)
        texts.append(F.normalize(vlm.text.project(vlm.text.norm(text[0, -1])), dim=-1))
    expected = vlm.scale * z @ torch.stack(texts).T
    assert torch.allclose(module(x), expected, atol=1e-4)


def test_words_learn_from_the_image_path_too():
    system = fitted()
    module, x = system.module_, system.read(DATA.split("test")).batch(torch.arange(5)).x
    module.encode_image(x.tokens).sum().backward()
    assert module.text.context.grad.abs().max() > 0 and module.deep_text.grad.abs().max() > 0


@pytest.mark.parametrize(
    "image",
    [
        ResNetConfig(image_size=32, width=8, layers=(1, 1, 1, 1), heads=2),
        BackboneConfig(name="timm:resnet18", image_size=32),
    ],
    ids=["resnet", "backbone"],
)
def test_a_convolutional_tower_has_no_such_door(image):
    vlm = frozen(replace(ARCHITECTURES["tiny"], image=image).build())
    vlm.text.tokenizer = ByteTokenizer()
    with pytest.raises(NoSuchDoor, match="has no transformer layers, so prompts cannot enter it"):
        MaPLe().fit(vlm, DATA.split("train"))


def test_deeper_than_the_towers_is_all_their_layers():
    assert len(MaPLe().build(tiny_vlm(), ["cat"]).couple) == 2
