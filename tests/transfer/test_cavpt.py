from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.cavpt import CAVPT, ClassPrompts, right_prompts

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares()


def fitted(**settings):
    system = CAVPT(**{"context_length": 4, "image_length": 3, "likely": 2} | settings)
    system.optim = replace(system.optim, steps=4, lr=0.05, warmup=0.0, batch_size=8, precision="fp32")
    return system.fit(MODEL, DATA.split("train"))


def looked_at(system):
    return system.module_, system.read(DATA.split("test")).batch(torch.arange(5))


def test_likely_classes_are_the_best_of_zero_shot():
    module, batch = looked_at(fitted(likely=3))
    order = MODEL.vlm.logits(batch.x.pooled, module.hand).argsort(-1, descending=True)
    assert torch.equal(module.chosen(batch.x.pooled), order[:, :3])


@pytest.mark.parametrize("likely", [0, 2])
def test_the_image_path_as_a_loop_over_its_layers(likely):
    module, batch = looked_at(fitted(likely=likely))
    tower, t = MODEL.vlm.image, module.encode_text()
    x = torch.cat([batch.x.tokens.x, module.image[0].expand(5, -1, -1)], 1)
    x = tower.blocks[0](tower.norm_before(x))[:, :-3]  # plain prompts in the first layer, then they leave
    if likely:
        prompts, _ = module.aware[0](t[module.chosen(batch.x.pooled)], x)
        x = torch.cat([x, prompts], 1)
    z = F.normalize(tower.norm(tower.blocks[1](x)[:, 0]) @ tower.projection, dim=-1)
    assert torch.allclose(module(batch.x), MODEL.vlm.logits(z, t), atol=1e-4)


def test_class_prompts_against_torchs_attention():
    torch.manual_seed(0)
    layer, t, x = ClassPrompts(8, 64, 4), torch.randn(2, 3, 8), torch.randn(2, 6, 64)
    keys = torch.cat([x, layer.own.expand(2, -1, -1)], 1)
    q = layer.enter(t)
    answer = layer.value(F.scaled_dot_product_attention(layer.query(q), layer.key(keys), keys))
    prompts, names = layer(t, x)
    assert torch.allclose(prompts, layer.norm(answer + q), atol=1e-5)
    assert torch.allclose(names, layer.name(layer.norm_answer(answer)), atol=1e-5)


def test_only_prompts_of_the_true_class_are_named():
    chosen, labels = torch.tensor([[0, 2], [1, 3], [2, 0]]), torch.tensor([2, 0, 2])
    named = [torch.randn(3, 2, 4), torch.randn(3, 2, 4)]
    expected = [F.cross_entropy(n[b, k][None], torch.tensor([2])) for b, k in ((0, 1), (2, 0)) for n in named]
    assert right_prompts(named, chosen, labels).item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-6)
    assert right_prompts(named, chosen, torch.tensor([1, 0, 1])).item() == 0


def test_terms_written_out():
    system = fitted()
    module, batch = looked_at(system)
    module.aware[0].name = torch.nn.Linear(64, 4, bias=False)
    z, named = module.see(batch.x.tokens, t := module.encode_text(), chosen := module.chosen(batch.x.pooled))
    y, vlm = batch.labels, MODEL.vlm
    both = F.cross_entropy(vlm.logits(z, t), y)
    classes = system.alpha * right_prompts(named, chosen, y)
    late = {"cross_entropy": both, "classes": classes}
    early = {
        "words": F.cross_entropy(vlm.logits(batch.x.pooled, t), y),
        "image": F.cross_entropy(vlm.logits(z, module.hand), y),
        "both": 0.1 * both,
        "classes": classes,
    }
    for progress, expected in ((0.1, early), (0.5, late)):
        batch.progress = progress
        losses = system.losses(module, batch)
        assert losses.keys() == expected.keys()
        for name, term in expected.items():
            assert losses[name].item() == pytest.approx(term.item(), abs=1e-5), name


def test_prompts_serve_other_classes():
    other = fitted().for_classes(["cat", "dog", "moon"])
    assert other.predict(DATA.split("test")).shape == (24, 3)
