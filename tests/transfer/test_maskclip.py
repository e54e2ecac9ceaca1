"""MaskCLIP: attention that only sees itself is the value path; without denoising it is the zero-shot segmenter."""

import pytest
import torch
from PIL import Image

from emblema.core.errors import BadData
from emblema.engine.dense import ZeroShotSegmenter
from emblema.model import load_any
from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.maskclip import MaskCLIP, denoised


@pytest.fixture(scope="module")
def model():
    return tiny_model(cache=False)


@pytest.fixture(scope="module")
def images():
    return [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]


def test_value_path_is_attention_with_only_the_diagonal(model):
    tower = model.vlm.image
    pixels = torch.randint(0, 256, (2, 3, tower.image_size, tower.image_size), dtype=torch.uint8)
    last, seen = tower.depth - 1, []
    tower.transform(tower.embed(pixels), lambda i, t: seen.append(t) or t)
    x = tower.before(last, seen[last]).x
    alone = torch.eye(x.shape[1], dtype=torch.bool)[None, None]
    expected = tower.norm(seen[last].with_x(tower.blocks[last](x, alone)).patches())
    found = tower.dense(pixels, values=True)
    assert torch.allclose(found.flatten(1, 2), tower.project(expected), atol=1e-5)


def test_without_denoising_it_is_the_zero_shot_segmenter(model, images):
    data = squares()
    fitted = MaskCLIP().fit(model, data)
    labels = ["red", "blue", "green"]
    theirs = ZeroShotSegmenter(features="values").segment(model, images, labels, fitted.wording)
    for ours, other in zip(fitted.segment(images, labels), theirs, strict=True):
        assert ours.shape == (3, 30, 40)
        assert torch.equal(ours, other)


def test_a_class_that_is_nowhere_probable_is_nowhere():
    cosine = torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]], [[0.2, 0.2]]])  # [3, 1, 2]
    assert denoised(cosine, 10.0, 0.5)[2].eq(-1).all()
    assert torch.equal(denoised(cosine, 10.0, 0.5)[:2], cosine[:2])
    assert torch.equal(denoised(cosine, 0.1, 0.5), cosine)  # nothing is sure: all may be


def test_a_run_segments_like_a_student(model, images, tmp_path, monkeypatch):
    fitted = MaskCLIP().fit(model, squares())
    fitted.save(tmp_path)
    monkeypatch.setattr("emblema.model.load", lambda name, **options: model)
    again = load_any(tmp_path)
    for a, b in zip(again.segment(images, ["red", "blue"]), fitted.segment(images, ["red", "blue"]), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_bad_threshold_is_refused(model):
    with pytest.raises(BadData, match="probability"):
        MaskCLIP(denoise=2.0).fit(model, squares())
