import numpy as np
import torch

from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.tip_adapter import TipAdapter

MODEL, DATA = tiny_model(cache=False), squares()


def fitted(**settings):
    return TipAdapter(**settings).fit(MODEL, DATA.split("train"))


def test_the_formula_in_numpy():
    system, test = fitted(alpha=2.0, beta=3.0, views=2), DATA.split("test")
    x = system.read(test).arrays
    z = x["pooled"][0].double().numpy()
    stored = system.read(DATA.split("train"), views=2).arrays
    keys = (stored["pooled"] * stored["norm"][..., None]).mean(0).double().numpy()
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    values = np.eye(4)[DATA.split("train").labels]
    text = system.hand(MODEL.vlm, DATA.class_names).double().numpy()
    expected = float(MODEL.vlm.scale) * z @ text.T + 2 * np.exp(-3 * (1 - z @ keys.T)) @ values
    assert np.allclose(system.predict(test).numpy(), expected, atol=1e-4)


def test_no_vote_is_zero_shot_and_a_flat_vote_changes_no_answer():
    test = DATA.split("test")
    z = fitted().read(test).arrays["pooled"][0]
    zero_shot = MODEL.vlm.logits(z, fitted().hand(MODEL.vlm, DATA.class_names))
    assert torch.allclose(fitted(alpha=0.0).predict(test), zero_shot, atol=1e-5)
    assert torch.allclose(fitted(beta=0.0).predict(test), zero_shot + 6, atol=1e-4)  # six pictures a class


def test_settings_are_chosen_on_validation_pictures():
    system = TipAdapter(views=0).fit(MODEL, DATA.split("train"), DATA.split("val"))
    val = DATA.split("val")
    y = torch.tensor(val.labels)
    right = lambda s: (s.predict(val).argmax(-1) == y).float().mean()
    assert right(system) >= max(right(fitted(views=0)), right(fitted(views=0, alpha=0.0)))
