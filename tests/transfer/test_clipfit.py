import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from emblema.core.errors import NoSuchDoor
from emblema.encoders.resnet import ResNetConfig
from emblema.frameworks.two_tower import ARCHITECTURES
from emblema.frameworks.vlm import frozen
from emblema.testing import ByteTokenizer, tiny_model
from emblema.testing.squares import squares
from emblema.transfer.clipfit import CLIPFit, tuned

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares()


def fitted(lr=0.05, steps=2, **settings):
    system = CLIPFit(**settings)
    system.optim = replace(
        system.optim, steps=steps, lr=lr, weight_decay=0.0, warmup=0.0, batch_size=8, precision="fp32"
    )
    return system.fit(MODEL, DATA.split("train"))


def test_no_update_is_zero_shot():
    system, test = fitted(lr=0.0), DATA.split("test")
    z = system.read(test).arrays["pooled"][0]
    expected = MODEL.vlm.logits(z, system.module_.hand)
    assert torch.allclose(system.predict(test), expected, atol=1e-4)


def test_what_is_tuned():
    names = tuned(MODEL.vlm)
    norms = ["norm_before", "blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2", "norm"]
    expected = {f"image.{n}.{leaf}" for n in norms for leaf in ("weight", "bias")}
    assert set(names) == expected | {"text.blocks.0.mlp.2.bias", "text.blocks.1.mlp.2.bias"}


def test_a_step_is_a_step_of_the_weights_themselves():
    system = fitted(steps=1)
    batch = next(iter(system.read(DATA.split("train")).batches(system.optim, system.seed)))
    vlm = copy.deepcopy(MODEL.vlm)
    weights = {name: vlm.get_parameter(name).requires_grad_() for name in tuned(vlm)}
    t = vlm.encode_text([f"a photo of a {name}." for name in DATA.class_names])
    loss = F.cross_entropy(vlm.logits(vlm.encode_image(batch.x.tokens), t), batch.labels)
    loss = loss + 8 * (1 - F.cosine_similarity(t, system.module_.hand)).mean()
    loss.backward()
    for name, weight in weights.items():
        path, _, leaf = name.rpartition(".")
        found = getattr(system.module_.vlm.get_submodule(path), leaf)
        assert torch.allclose(found, weight - 0.05 * weight.grad, atol=1e-5), name


def test_only_updates_are_saved():
    module = fitted().module_
    assert set(module.state_dict()) == {f"updates.{name.replace('.', '/')}.by" for name in tuned(MODEL.vlm)}


def test_a_convolutional_tower_is_told():
    config = ResNetConfig(image_size=32, width=8, layers=(1, 1, 1, 1), heads=2)
    vlm = frozen(replace(ARCHITECTURES["tiny"], image=config).build())
    vlm.text.tokenizer = ByteTokenizer()
    with pytest.raises(NoSuchDoor, match="has no transformer layers whose weights could be updated"):
        CLIPFit().fit(vlm, DATA.split("train"))
