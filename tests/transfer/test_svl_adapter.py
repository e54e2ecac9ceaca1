"""SVL-Adapter: at the ends of the mixture it is one of its parts, and the grid is brute force."""

from dataclasses import replace

import torch

from emblema.objectives.contrastive import nt_xent
from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.svl_adapter import GRID, STRONG, SVLAdapter

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares()
TRAIN, VAL, TEST = (DATA.split(s) for s in ("train", "val", "test"))


def fit(val=None, **fields):
    system = SVLAdapter(**{"pretrain": 3, "size": 32, "width": 16, **fields})
    return replace(system, optim=replace(system.optim, precision="fp32", steps=5)).fit(MODEL, TRAIN, val)


def parts(fitted):
    """What the MLP says of the test pictures, and zero-shot."""
    inputs = fitted.read(TEST)
    hidden = fitted.module_.eyes(inputs.arrays["pixels"][0])
    zero_shot = MODEL.vlm.logits(inputs.arrays["pooled"][0], fitted.hand(MODEL.vlm, DATA.class_names))
    return fitted.module_.mlp(hidden), zero_shot


def test_alpha_0_is_zero_shot_and_1_the_mlp_alone():
    nothing, all_ = fit(alpha=0.0), fit(alpha=1.0)
    assert torch.equal(nothing.predict(TEST), parts(nothing)[1])
    torch.testing.assert_close(all_.predict(TEST), parts(all_)[0], atol=1e-5, rtol=0)


def test_alpha_is_the_best_of_the_grid_on_validation_pictures():
    fitted = fit(VAL)
    val = fitted.read(VAL)
    named = fitted.module_.mlp(fitted.module_.eyes(val.arrays["pixels"][0]))
    text = MODEL.vlm.logits(val.arrays["pooled"][0], fitted.hand(MODEL.vlm, DATA.class_names))
    right = [int((((1 - a) * text + a * named).argmax(1) == val.labels).sum()) for a in GRID]
    assert float(fitted.module_.alpha) == torch.tensor(GRID[right.index(max(right))]) and len(GRID) == 21
    assert float(fit().module_.alpha) == torch.tensor(0.2)  # nothing to choose on


def test_confident_alpha_is_what_zero_shot_is_unsure_of():
    fitted = fit(VAL, confident=True)
    logits = fitted.predict(TEST)
    named, text = parts(fitted)
    alpha = 1 - text.softmax(-1).amax(-1).mean()
    torch.testing.assert_close(logits, alpha * named + (1 - alpha) * text, atol=1e-4, rtol=0)


def test_looking_brings_two_views_of_a_picture_together():
    pixels = torch.cat([fit().read(s).arrays["pixels"][0] for s in (TRAIN, TEST)])
    views = [STRONG(pixels, 32, torch.Generator().manual_seed(s)) for s in (0, 1)]

    def apart(fitted):
        h = [torch.nn.functional.normalize(fitted.module_.eyes(v), dim=-1) for v in views]
        return float(nt_xent(h[0], h[1], 0.5))

    assert apart(fit(pretrain=40)) < apart(fit(pretrain=0))
    assert not any(p.requires_grad for p in fit().module_.eyes.parameters())
