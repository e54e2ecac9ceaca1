"""The model that ships: it loads without a network, knows held-out drawings, and has every door."""

import json
import re
from pathlib import Path

import pytest
import torch

import emblema
from emblema.core.batch import Level
from emblema.core.errors import BadData
from emblema.data import catalog
from emblema.engine.features import weights_id
from emblema.frameworks.pretrained import MODELS

pytestmark = pytest.mark.weights
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model():
    return emblema.load("default")


def test_all_shipped_models_fit_in_25_mb():
    assert sum(f.stat().st_size for f in MODELS.rglob("*") if f.is_file()) <= 25e6


def test_it_names_drawings_of_a_family_it_never_saw(model):
    data = catalog.load("emblem-objects", split="test").where(domain="emojione")
    some = data.subset(range(0, len(data), 4))
    found = model.classify([r.image for r in some], data.class_names).argmax(-1)
    right = (found == torch.tensor([r.label for r in some])).float().mean().item()
    assert right > 0.4, f"{right:.2f} of {len(some)} right; one in 715 is chance"


def test_every_door_is_open(model):
    data = catalog.load("emblem-photos")
    images = torch.stack([_pixels(model, data[i].image) for i in range(2)])
    vlm, tower = model.vlm, model.vlm.image
    z = vlm.encode_image(images)  # [2, D]
    prompted = vlm.encode_image(images, edit=lambda i, t: t.insert(torch.ones(3, t.x.shape[-1]), at=1) if i == 0 else t)
    assert not torch.allclose(z, prompted, atol=1e-3)
    tokens = tower.embed(images)
    weights = tower.attention_weights(0, tokens)
    assert torch.allclose(weights.sum(-1), torch.ones_like(weights[..., 0]), atol=1e-3)
    for values in (False, True):
        patches = vlm.encode_patches(images, values=values)
        assert patches.shape == (2, 7, 7, vlm.dim)
    larger = torch.nn.functional.interpolate(images.float(), scale_factor=2).to(torch.uint8)
    assert vlm.encode_patches(larger).shape == vlm.encode_local(larger).shape == (2, 14, 14, vlm.dim)
    for level in (Level.POOLED, Level.PATCHES, Level.EMBEDDED):
        assert len(vlm.read(images, level)) == 2


def test_the_five_lines_of_the_readme_run(tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.S)[1]
    data = catalog.load("emblem-photos")
    for name, i in (("cat.jpg", 0), ("bus.png", 1)):
        (tmp_path / name).write_bytes(data[i].image)
    monkeypatch.chdir(tmp_path)
    exec(code, {})


def test_published_numbers_are_of_the_weights_that_ship(model):
    """Evaluate again and `make docs` when this fails."""
    path = ROOT / "benchmarks" / "results" / "default.jsonl"
    lines = [json.loads(row) for row in path.read_text().splitlines()]
    assert {line["weights"] for line in lines if line["model"] == "default"} == {weights_id(model.vlm)}


def _pixels(model, source):
    from emblema.data.pictures import load_image

    return load_image(source, model.preprocess)


def test_words_that_the_vocabulary_does_not_know_are_told(model):
    with pytest.raises(BadData, match="no token of '고양이', '개': write the words in a language that it learnt"):
        model.class_vectors(["고양이", "개"])
    with pytest.warns(UserWarning, match="no token of '고양이': to it they are all one word"):
        model.class_vectors(["고양이", "dog"])
