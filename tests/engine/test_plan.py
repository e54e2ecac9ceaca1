import json
import time

import pytest
import torch
from toys import Pairs, Squares

from emblema.core.errors import EmblemaError
from emblema.core.method import Optim
from emblema.engine.loader import Loader
from emblema.engine.plan import plan
from emblema.pretrain.clip import CLIP


def test_parameters_and_steps_are_those_of_the_run():
    method = Pairs(optim=Optim(batch_size=12, epochs=3, precision="fp32"))
    module = method.build()
    figures = plan(method, 50, flop_rate=1e9)
    count = lambda m: sum(p.numel() for p in m.parameters())
    vlm = module["vlm"]
    assert figures.parameters["image tower"] == count(vlm.image)
    assert figures.parameters["text tower"] == count(vlm.text)
    assert figures.parameters["head"] == count(module["head"])
    assert figures.parameters["total"] == figures.trained == count(module)
    assert figures.steps == 3 * Loader(dataset=Squares(50), batch_size=12, size=16).epoch_steps == 15
    assert figures.memory["optimiser"] == 8 * count(module) == 2 * figures.memory["gradients"]
    assert figures.seconds == pytest.approx(15 * figures.flops_per_step / 1e9)


@pytest.mark.parametrize("arch", ["tiny", "vit-s-16-112"])
def test_activations_are_what_autograd_keeps(arch):
    method = CLIP(arch=arch, optim=Optim(batch_size=4, precision="fp32"))
    torch.manual_seed(0)
    tower = method.build()["vlm"].image.train()
    kept, weights = {}, {p.untyped_storage().data_ptr() for p in tower.parameters()}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    images = torch.zeros(4, 3, tower.image_size, tower.image_size, dtype=torch.uint8)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = tower.encode(images)
        real = sum(kept.values())
    assert out.requires_grad
    # the text tower keeps next to nothing with captions of no words
    planned = plan(method, 100, words=0.0, flop_rate=1e9).memory["activations"]
    assert 0.7 < planned / real < 1.4, (planned, real)


def test_huge_batches_are_answered_at_once():
    began = time.process_time()
    figures = plan(CLIP(arch="vit-b-32", optim=Optim(precision="fp32")), 12_000_000, batch_size=32768, steps=10)
    assert time.process_time() - began < 8
    text = str(figures)
    assert "full matrix of logits would take 16.00 GB" in text and "optim.chunk=" in text
    assert figures.memory["logits"] < 2**30
    chunked = plan(
        CLIP(arch="vit-b-32", optim=Optim(precision="fp32")), 12_000_000, batch_size=32768, chunk=64, flop_rate=1e12
    )
    assert chunked.memory["activations"] < figures.memory["activations"] / 400
    assert chunked.flops_per_step == pytest.approx(figures.flops_per_step * 4 / 3)
    assert json.loads(json.dumps(chunked.to_json()))["batch_size"] == 32768


def test_processes_share_the_batch():
    one, two = (plan(CLIP(arch="tiny"), 1000, batch_size=64, world=w, flop_rate=1e9) for w in (1, 2))
    assert two.memory["activations"] == pytest.approx(one.memory["activations"] / 2, rel=0.01)
    assert two.seconds == pytest.approx(one.seconds / 2)
    with pytest.raises(EmblemaError, match="equally"):
        plan(CLIP(arch="tiny"), 1000, batch_size=65, world=2)


def test_flops_are_those_of_the_products():
    """Against a count of the forward pass by PyTorch."""
    from torch.utils.flop_counter import FlopCounterMode

    method = CLIP(arch="vit-s-16-112", optim=Optim(precision="fp32"))
    tower = method.build()["vlm"].image
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tower.transform(tower.embed(torch.zeros(1, 3, 112, 112, dtype=torch.uint8)))
    planned = plan(method, 100, batch_size=1, words=0.0, flop_rate=1e9).flops_per_step / 3
    assert planned == pytest.approx(counter.get_total_flops(), rel=0.05)
