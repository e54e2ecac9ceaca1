"""Vectors of boxes come from disk only where they were made of the same pixels, boxes, sizes and weights."""

import pytest
import torch

from emblema.core.boxes import Boxes
from emblema.engine.crops import CropVectors
from emblema.engine.regions import ZeroShotDetector
from emblema.testing import tiny_model
from emblema.testing.distill import placed_squares

DATA = placed_squares(3)
PICTURES = [r.image for r in DATA]
BOXES = [Boxes(r.boxes.xyxy) for r in DATA]


@pytest.fixture
def model(tmp_path):
    return tiny_model(cache=tmp_path, precision="fp32")


def passes(model, monkeypatch):
    """How many crops the image tower is shown from now on."""
    seen, encode = [], model.encoder.images
    monkeypatch.setattr(model.encoder, "images", lambda pieces: seen.extend(pieces) or encode(pieces))
    return seen


def test_the_second_time_no_crop_is_looked_at(model, monkeypatch):
    expected = ZeroShotDetector(crops=(1.0, 1.5)).cropped(model, PICTURES, BOXES)
    first = CropVectors(model)(PICTURES, BOXES)
    seen = passes(model, monkeypatch)
    again = CropVectors(model)(PICTURES, BOXES)
    assert not seen
    for a, b, c in zip(first, again, expected):
        assert torch.equal(a, b) and torch.allclose(a, c, atol=1e-5)


def test_other_boxes_sizes_pixels_or_weights_are_looked_at(model, monkeypatch, tmp_path):
    CropVectors(model)(PICTURES, BOXES)
    seen = passes(model, monkeypatch)
    CropVectors(model)(PICTURES[:1], [Boxes(BOXES[0].xyxy + 1)])
    assert len(seen) == 4  # two boxes in two sizes
    CropVectors(model, scales=(1.0,))(PICTURES[:1], BOXES[:1])
    assert len(seen) == 6
    CropVectors(model)([PICTURES[0].transpose(0)], BOXES[:1])
    assert len(seen) == 10
    other = tiny_model(seed=1, cache=tmp_path, precision="fp32")
    assert not torch.allclose(CropVectors(other)(PICTURES[:1], BOXES[:1])[0], CropVectors(model)(PICTURES, BOXES)[0])


def test_a_cut_file_is_made_again(model, monkeypatch, tmp_path):
    first = CropVectors(model)(PICTURES, BOXES)
    file = sorted((tmp_path / "crops").iterdir())[0]
    file.write_bytes(file.read_bytes()[:20])
    seen = passes(model, monkeypatch)
    again = CropVectors(model)(PICTURES, BOXES)
    assert len(seen) == 4 and all(torch.equal(a, b) for a, b in zip(first, again))


def test_no_box_is_no_vector_and_without_a_cache_nothing_is_kept(tmp_path):
    model = tiny_model(cache=False)
    assert [v.shape for v in CropVectors(model)(PICTURES[:1], [Boxes(torch.empty(0, 4))])] == [(0, model.dim)]
