"""A batch in parts, a CPU thread each, gives what the whole batch gives, and leaves torch's threads as they were."""

import pytest
import torch

from emblema.core.preprocess import Preprocess
from emblema.engine import encode
from emblema.engine.encode import Encoder
from emblema.testing import tiny_vlm


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("stage", ["joint", "hidden", "patches", "values", "embedded"])
def test_parts_are_the_whole(threads, monkeypatch, stage):
    monkeypatch.setattr(encode, "PART", 2)
    encoder = Encoder(tiny_vlm(), Preprocess(size=32), precision="fp32", device="cpu")
    pixels = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = []
    whole = encoder._encode
    monkeypatch.setattr(encoder, "_encode", lambda part, s: seen.append(torch.get_num_threads()) or whole(part, s))
    threads(1)
    one = encoder.encode(pixels, stage)
    assert seen == [1]
    threads(3)
    several = encoder.encode(pixels, stage)
    assert seen[1:] == [1] * 4 and torch.get_num_threads() == 3  # parts of 2, 2, 2 and 1
    assert one.keys() == several.keys()
    for name, rows in one.items():
        torch.testing.assert_close(several[name], rows, atol=1e-5, rtol=0)


def test_what_fails_in_a_part_is_raised_and_threads_stay(threads, monkeypatch):
    encoder = Encoder(tiny_vlm(), Preprocess(size=32), precision="fp32", device="cpu")
    threads(2)
    with pytest.raises(ValueError, match="unknown stage"):
        encoder.encode(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), "nothing")
    assert torch.get_num_threads() == 2
