from dataclasses import replace

import pytest
import torch

from emblema.engine.optimise import lr_at
from emblema.parts.prompts import hand_written
from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.base import coop_recipe
from emblema.transfer.coop import CoOp
from emblema.transfer.kgcoop import KgCoOp

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares()
TRAIN, TEST = DATA.split("train"), DATA.split("test")
WORDS = "a photo of a "


def quick(system, **changes):
    recipe = {"steps": 3, "precision": "fp32", "batch_size": 8, "warmup": 0.0, "lr": 0.05}
    return replace(system, optim=replace(system.optim, **recipe | changes))


def test_weight_zero_is_coop():
    ours = quick(KgCoOp(weight=0.0, words=WORDS)).fit(MODEL, TRAIN)
    coop = quick(CoOp(words=WORDS)).fit(MODEL, TRAIN)
    assert torch.allclose(ours.predict(TEST), coop.predict(TEST), atol=1e-4)


def test_the_second_term_is_half_the_squared_distance_and_starts_at_zero():
    terms = []
    system = quick(KgCoOp(words=WORDS, weight=2.0), steps=2)
    system.fit(MODEL, TRAIN, on_step=lambda step: terms.append(step.losses["away"]))
    assert terms[0] == pytest.approx(0, abs=1e-6) and terms[1] > 1e-4
    module = system.module_
    away = (module.prompt() - module.hand).square().sum(-1).mean()
    batch = next(iter(system.read(TRAIN).batches(system.optim, 1)))
    assert system.losses(module, batch)["away"].item() == pytest.approx(away.item(), rel=1e-4)


def test_a_large_weight_holds_the_hand_written_classifier():
    hand = hand_written(MODEL.vlm, TEST.class_names)
    strong, free = (quick(KgCoOp(words=WORDS, weight=w), lr=0.003, steps=30).fit(MODEL, TRAIN) for w in (30.0, 0.0))
    off = [(system.module_.prompt() - hand).norm(dim=-1).mean() for system in (strong, free)]
    assert off[0] < off[1] / 3


def test_the_squared_schedule_has_the_rates_of_the_posted_log():
    optim = coop_recipe(schedule="epochs-squared", warmup=0.0)
    rate = {epoch: lr_at((epoch - 1) * 4, 400, optim, epoch_steps=4) for epoch in (1, 91, 100)}
    assert rate == pytest.approx({1: 0.002, 91: 1.197732e-6, 100: 1.217413e-10}, rel=1e-5)
