import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.coprompt import CoPrompt, another, bottleneck, pooled_views
from emblema.transfer.maple import MaPLe

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares()


def fitted(system, **reading):
    system.optim = replace(system.optim, steps=3, lr=0.02, warmup=0.0, batch_size=8, precision="fp32")
    return system.fit(MODEL, DATA.split("train"), **reading)


def test_without_adapters_and_consistency_it_is_maple():
    ours = fitted(CoPrompt(image_ratio=0.0, text_ratio=0.0, weight=0.0, views=0))
    maple = fitted(MaPLe())
    assert torch.allclose(ours.predict(DATA.split("test")), maple.predict(DATA.split("test")), atol=1e-4)


def test_terms_written_out():
    system = fitted(CoPrompt(weight=3.0))
    module, batch = system.module_, system.read(DATA.split("test")).batch(torch.arange(6))
    batch.targets["frozen"] = batch.x.pooled[:, None]  # one view, one sentence a class: nothing is random
    module.sentences = [MODEL.vlm.encode_text([f"a {name} in words"]) for name in DATA.class_names]
    losses, z, t = system.losses(module, batch), module.encode_image(batch.x.tokens), module.encode_text()
    expected = {
        "cross_entropy": F.cross_entropy(MODEL.vlm.scale * z @ t.T, batch.labels),
        "image": 3 * (1 - (z * batch.x.pooled).sum(-1).mean()),
        "text": 3 * (1 - (t * torch.cat(module.sentences)).sum(-1).mean()),
    }
    for name, term in expected.items():
        assert losses[name].item() == pytest.approx(term.item(), abs=1e-5), name


def test_the_direction_of_the_adapter_does_not_hang_on_the_length():
    torch.manual_seed(0)
    adapt, x = bottleneck(16, 4), torch.randn(5, 16)
    raw = 0.2 * adapt(7 * x) + 0.8 * 7 * x
    assert torch.allclose(F.normalize(raw), F.normalize(0.2 * adapt(x) + 0.8 * x), atol=1e-6)


def test_the_frozen_model_sees_every_view():
    system = fitted(CoPrompt(views=3))
    train = system.read(DATA.split("train"), views=3)
    frozen = pooled_views(train)
    assert torch.equal(frozen, train.arrays["pooled"].transpose(0, 1))
    g = torch.Generator().manual_seed(0)
    seen = torch.stack([another(frozen, g) for _ in range(30)])  # [30, N, D]
    for view in range(3):
        assert (seen[:, 0] == frozen[0, view]).all(-1).any()


def test_cached_and_live_runs_are_one():
    cached, live = (fitted(CoPrompt(), live=live).predict(DATA.split("test")) for live in (False, True))
    assert torch.allclose(cached, live, atol=1e-4)


def test_sentences_from_a_file(tmp_path):
    path = tmp_path / "said.json"
    path.write_text(json.dumps({"red square": ["four corners", "red paint"]}))
    system = CoPrompt(descriptions=str(path), templates=("a {} here.",))
    said = system.sentences(["red square", "blue square"])
    assert len(said[0]) == 2 and "four corners" in said[0][0] and said[1] == ["a blue square here."]
