import pytest
import torch
from open_clip.loss import ClipLoss
from test_clip import built

import emblema
from emblema.core.errors import EmblemaError, NoSuchDoor
from emblema.core.method import Optim
from emblema.encoders.tokenizers import TextIds
from emblema.engine.train import run_pretraining
from emblema.pretrain.fiber import FIBER, padded
from emblema.testing import tiny_batch
from emblema.testing.squares import squares


def method(**fields):
    return FIBER(**{"arch": "tiny", "queue": 16} | fields)


def test_contrast_is_that_of_open_clip_until_the_queue_fills():
    system = method(contrast_queue=True)
    module, batch = built(system), tiny_batch(8)
    vlm = module["vlm"]
    assert vlm.scale.item() == pytest.approx(1 / 0.07) and dict(vlm.logit_scale.named_parameters())["value"] == 0.07
    expected = ClipLoss()(vlm.encode_image(batch.images), vlm.encode_text(batch.texts), vlm.scale)
    torch.testing.assert_close(system.losses(module, batch)["image_text"], expected)
    assert len(module["queue"]) == 0  # evaluation leaves no trace
    system.losses(module.train(), batch)
    assert len(module["queue"]) == 8
    assert system.losses(module, batch)["image_text"] > expected  # more columns, the pair's own copy among them
    torch.testing.assert_close(method().losses(module, batch)["image_text"], expected)  # of the batch alone


def pairs_seen(system, module, batch, monkeypatch):
    """What the matching head is asked, and what is right."""
    seen, match = {}, module["vlm"].match

    def noted(images, ids):
        seen.update(images=images, ids=ids)
        return match(images, ids)

    monkeypatch.setattr(module["vlm"], "match", noted)
    system.losses(module, batch)
    return seen["images"], seen["ids"]


def test_hard_pairs_are_wrong_pairs(monkeypatch):
    system = method()
    module, batch = built(system), tiny_batch(8)
    batch.texts[1] = batch.texts[0]
    system.losses(module.train(), batch)  # the queue now says all of it again
    images, ids = pairs_seen(system, module.eval(), batch, monkeypatch)
    whole = padded(TextIds(ids.ids, ids.length), 32)
    own = padded(module["vlm"].text.tokenize(batch.texts), 32)
    assert torch.equal(images[:8], batch.images) and torch.equal(whole[:8], own)
    found = (len(images) - 8) // 2
    assert found == 8
    assert torch.equal(images[8:16], batch.images) and not (whole[8:16] == own).all(1).any()  # own image, wrong text
    assert torch.equal(whole[16:], own)  # own text, an image of other words
    said = {tuple(i.flatten().tolist()): tuple(t.tolist()) for i, t in zip(batch.images, own)}
    assert all(said[tuple(image.flatten().tolist())] != tuple(text.tolist()) for image, text in zip(images[16:], own))


def test_alone_or_all_alike_there_is_no_wrong_pair():
    system = method()
    module = built(system)
    alone = system.losses(module, tiny_batch(1))
    alike = tiny_batch(4)
    alike.texts = ["the same"] * 4
    for terms in (alone, system.losses(module, alike)):
        assert all(torch.isfinite(value) for value in terms.values())


def test_every_part_learns_and_the_loss_falls():
    losses = []
    system = method()
    module, batch = built(system).train(), tiny_batch(8)
    optimiser = torch.optim.AdamW(module.parameters(), lr=2e-3)
    for _ in range(25):
        terms = system.losses(module, batch)
        losses.append({name: value.item() for name, value in terms.items()})
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
        system.after_step(module)
    assert all(losses[-1][name] < losses[0][name] for name in losses[0])
    assert all(p.grad is not None for p in module.parameters())
    assert all(reading.alpha != 0 for reading in (*module["vlm"].of_text, *module["vlm"].of_image))


def test_a_run_is_a_model_that_matches(tmp_path):
    data = squares(each=4).split("train")
    optim = Optim(lr=1e-3, batch_size=8, precision="fp32")
    run_pretraining(method(optim=optim), data, tmp_path / "run", steps=2, progress=False, quiet=True)
    model = emblema.load(tmp_path / "run" / "model")
    assert model.embed_texts(["red square"]).shape == (1, 32)
    images = torch.stack([torch.zeros(3, 32, 32, dtype=torch.uint8)] * 2)
    assert model.vlm.match(images, ["red square", "blue square"]).shape == (2, 2)


def test_the_temperature_moves_at_a_hundredth_of_the_rate(tmp_path):
    data, moved = squares(each=4).split("train"), []
    for lr in (1e-3, 1e-1):
        optim = Optim(lr=lr, batch_size=8, precision="fp32", warmup=0.0, schedule="constant")
        vlm = run_pretraining(method(optim=optim), data, steps=1, progress=False, quiet=True)
        moved.append(abs(1 / vlm.scale.item() - 0.07))  # Adam's first step is the rate
    assert moved == pytest.approx([1e-5, 1e-3], rel=0.05)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(NoSuchDoor, match="fiber fuses a ViT"):
        method(arch="demo").config()
    chunked = method(optim=Optim(chunk=4, batch_size=8))
    with pytest.raises(EmblemaError, match="chunk"):
        run_pretraining(chunked, squares(each=4).split("train"), steps=1, progress=False, quiet=True)
