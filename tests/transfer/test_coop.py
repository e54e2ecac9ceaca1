import pytest
import torch

from emblema.data.fewshot import few_shot
from emblema.parts.prompts import hand_written
from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.coop import CoOp


def test_untrained_words_are_the_hand_written_prompt():
    model, test = tiny_model(cache=False), squares().split("test")
    system = CoOp(words="a photo of a ")
    system.optim.__dict__["lr"] = 0.0
    system.fit(model, squares().split("train"))
    z = system.read(test).arrays["pooled"][0]
    zero_shot = model.vlm.logits(z, hand_written(model.vlm, test.class_names, ["a photo of a {}."]))
    assert torch.allclose(system.predict(test), zero_shot, atol=1e-4)


def test_learns_what_the_words_do_not_say():
    model, data = tiny_model(cache=False), squares()
    y = torch.tensor(data.split("test").labels)
    system = CoOp(context_length=4, each=True)
    system.optim.__dict__.update(lr=0.3, epochs=40.0, batch_size=8)
    accuracy = (system.fit(model, data.split("train")).predict(data.split("test")).argmax(-1) == y).float().mean()
    assert accuracy > 0.6  # chance: 0.25


def test_class_vectors_are_encoded_once_while_nothing_is_learnt(monkeypatch):
    model, data = tiny_model(cache=False, precision="fp32"), squares()
    system = CoOp(context_length=4)
    system.optim.__dict__.update(epochs=1.0)
    prompt = system.fit(model, data.split("train")).module_.prompt
    asked, encode = [], model.vlm.encode_text
    monkeypatch.setattr(model.vlm, "encode_text", lambda *given: asked.append(1) or encode(*given))
    system.predict_size = 3
    before = system.predict(data.split("test"))
    assert len(data.split("test")) > 3 and len(asked) == 1
    with torch.no_grad():
        prompt.context.add_(1.0)  # as a step or a loaded file would
    assert not torch.equal(system.predict(data.split("test")), before) and len(asked) == 2


@pytest.mark.parametrize("each", [False, True], ids=["shared", "each class"])
@pytest.mark.parametrize("layout", ["end", "middle", "front"])
def test_one_shot_wherever_the_name_stands(layout, each):
    model, data = tiny_model(cache=False, precision="fp32"), few_shot(squares().split("train"), 1, seed=1)
    losses, system = [], CoOp(context_length=4, layout=layout, each=each)
    system.optim.__dict__.update(algorithm="adam", lr=0.01, epochs=20.0, precision="fp32")
    system.fit(model, data, on_step=lambda step: losses.append(step.loss))
    assert len(data) == 4 and len(losses) == 20  # one batch an epoch, smaller than asked for
    assert losses[-1] < losses[0] and system.module_.prompt.context.shape[:-1] == ((4, 4) if each else (4,))
