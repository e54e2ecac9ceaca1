import csv

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from emblema.core.card import DatasetCard
from emblema.core.errors import BadData
from emblema.data import catalog
from emblema.data.datasets import Records
from emblema.tasks.action import Action
from emblema.tasks.base import labels_of
from emblema.tasks.clips import Frames, vectors
from emblema.tasks.linear_probe import LinearProbe
from emblema.testing import tiny_model
from tests.data.test_video import write_video

ACTIONS = {"brightening": (40, 200), "darkening": (200, 40), "resting": (120, 120)}


def clip(action, seed, frames=5):
    low, high = ACTIONS[action]
    tint = np.random.default_rng(seed).integers(0, 40, 3)
    return [
        Image.fromarray(np.full((32, 32, 3), tint + g, np.uint8)) for g in np.linspace(low, high, frames).astype(int)
    ]


def clips(each=4):
    """A table of frames: actions, splits, two kinds of actors, one novel action."""
    rows = [(s, a, i) for s in ("train", "val", "test") for a in ACTIONS for i in range(each)]
    columns = {
        "key": [f"{s}/{a}/{i}" for s, a, i in rows],
        "image": [clip(a, 7 * i + len(s), 3 + i % 3) for s, a, i in rows],
        "label": [list(ACTIONS).index(a) for _, a, _ in rows],
        "split": [s for s, *_ in rows],
        "domain": ["human" if s == "test" and i % 2 else "creature" for s, _, i in rows],
        "novel": [a == "resting" for _, a, _ in rows],
    }
    return Records(DatasetCard(name="clips", title="Clips", task="action", classes=3), columns, list(ACTIONS))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(cache=tmp_path_factory.mktemp("cache"), precision="fp32")


@pytest.mark.parametrize("level", ["joint", "hidden"])
def test_a_clip_is_the_mean_of_its_frames(model, level):
    data = clips().split("test")
    found = vectors(model, data, "hidden" if level == "hidden" else 3, frames=4)
    one = data[1]
    rows = [model.embed_images([one.image[i]], projected=level == "joint") for i in (0, 1, 2, 3)]  # of 4 frames
    mean = torch.cat(rows).mean(0)
    assert len(one.image) == 4 and torch.allclose(
        found[1], mean if level == "hidden" else normalize(mean, dim=0), atol=1e-5
    )


def test_frames_have_an_identity_of_their_own():
    data = clips().split("test")
    assert Frames(data, 4).identity() == Frames(data, 4).identity() != Frames(data, 8).identity()
    assert Frames(data, 4).identity() != Frames(clips().split("val"), 4).identity()
    with pytest.raises(BadData, match="take at least 1"):
        Frames(data, 0)


def test_zero_shot_with_domains_and_novel_actions(model):
    found = Action(resamples=20, frames=4).evaluate(model, clips().split("test"))
    metrics = found["metrics"]
    both = (metrics["top1"]["value"] + metrics["top5"]["value"]) / 2
    assert metrics["top1_top5_mean"]["value"] == pytest.approx(both)
    assert {"top1/human", "top1/creature", "top1/novel_among_novel", "top1/harmonic_among_own"} <= set(metrics)
    assert found["sizes"]["clips"] == 12 and found["protocol"]["name"] == "action/clips/test"
    assert next(iter(metrics)) == "top1_top5_mean"


def test_a_probe_learns_actions(model):
    data = clips()
    task = Action(probe=True, resamples=20, frames=4)
    assert task.splits() == ("train", "val") and Action().splits() == ()
    outcome = task.run(model, data.split("test"), train=data.split("train"), val=data.split("val"))
    # brightening and darkening have the same frames in another order: a mean cannot tell them apart
    assert outcome.metrics["top1"].value >= 0.5 and outcome.sizes["train"] == 24
    named = task.protocol(model, data.split("test"), "test")
    assert named.name == "action-probe/clips/test" and named.options["probe"]["level"] == "hidden"
    few = Action(probe=True, resamples=5, frames=4, shots=1).run(
        model, data.split("test"), train=data.split("train"), val=data.split("val")
    )
    assert few.sizes["train"] == 3


def test_a_linear_probe_takes_clips(model):
    data = clips()
    outcome = LinearProbe(resamples=5, frames=4).run(
        model, data.split("test"), train=data.split("train"), val=data.split("val")
    )
    assert outcome.sizes["images"] == 12


def test_videos_and_folders_of_frames_of_ones_own(model, tmp_path):
    rows = []
    for action, (low, high) in ACTIONS.items():
        greys = np.linspace(low, high, 6).astype(int)
        write_video(tmp_path / f"{action}.mp4", greys)
        rows.append((f"{action}.mp4", action))
        (tmp_path / "frames" / action / "clip0").mkdir(parents=True)
        for i, grey in enumerate(greys):
            Image.new("RGB", (32, 32), (int(grey),) * 3).save(tmp_path / "frames" / action / "clip0" / f"{i}.png")
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    for place in (tmp_path / "mine.csv", tmp_path / "frames"):
        data = catalog.load(place)
        found = Action(resamples=5, frames=3).run(model, data)
        assert found.sizes["clips"] == 3 and found.sizes["classes"] == 3


class Knows:
    """A fitted system: the right class gets 1, all others 0."""

    def scores(self, data):
        return torch.nn.functional.one_hot(labels_of(data), len(data.class_names)).float()


def test_a_fitted_system_is_measured_as_it_is():
    data = clips().split("test")
    found = Action(resamples=5).evaluate(Knows(), data)
    assert found["metrics"]["top1"]["value"] == 1 and found["protocol"]["templates"] == ""
    with pytest.raises(BadData, match="leave --probe off"):
        Action(probe=True).run(Knows(), data, train=data, val=data)
