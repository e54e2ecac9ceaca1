import copy
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from emblema.encoders.resnet import ResNetConfig
from emblema.frameworks.two_tower import ARCHITECTURES
from emblema.frameworks.vlm import frozen
from emblema.testing import ByteTokenizer, tiny_model
from emblema.testing.squares import squares
from emblema.transfer.fine_tune import FineTune

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares()


def fitted(vlm=MODEL, **changes):
    system = FineTune()
    system.optim = replace(system.optim, **{"steps": 1, "warmup": 0, "precision": "fp32", "batch_size": 8} | changes)
    return system.fit(vlm, DATA.split("train"))


def test_no_step_is_zero_shot():
    system, test = fitted(lr=0.0), DATA.split("test")
    z = MODEL.vlm.encode_image(system.read(test).arrays["pixels"][0])
    assert torch.allclose(
        system.predict(test), MODEL.vlm.logits(z, system.hand(MODEL.vlm, DATA.class_names)), atol=1e-4
    )


def test_a_step_is_torchs():
    system = fitted(algorithm="sgd", lr=0.1, weight_decay=0.0, clip_norm=None)
    batch = next(iter(system.read(DATA.split("train")).batches(system.optim, system.seed)))
    tower = copy.deepcopy(MODEL.vlm.image).requires_grad_(True)
    head = nn.Parameter(system.module_.start.clone())
    logits = F.normalize(tower.encode(batch.x.pixels), dim=-1) @ head.T
    F.cross_entropy(logits, batch.labels).backward()
    torch.optim.SGD([*tower.parameters(), head], lr=0.1).step()
    assert torch.allclose(system.module_.head, head, atol=1e-5)
    for (name, ours), theirs in zip(system.module_.tower.named_parameters(), tower.parameters()):
        assert torch.allclose(ours, theirs, atol=1e-5), name


def test_any_tower_and_its_statistics_stay():
    config = ResNetConfig(image_size=32, width=8, layers=(1, 1, 1, 1), heads=2)
    vlm = frozen(replace(ARCHITECTURES["tiny"], image=config).build())
    vlm.text.tokenizer = ByteTokenizer()
    module = fitted(vlm, steps=3, lr=1e-3).module_
    before, after = dict(vlm.image.named_buffers()), dict(module.tower.named_buffers())
    assert before and all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(a, b) for a, b in zip(vlm.image.parameters(), module.tower.parameters()))


def test_learns_the_squares():
    system = fitted(steps=30, lr=1e-3, batch_size=24)
    y = torch.tensor(DATA.split("test").labels)
    assert (system.predict(DATA.split("test")).argmax(-1) == y).float().mean() > 0.9
