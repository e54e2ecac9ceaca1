import torch

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
