import pytest
import torch

from emblema.core.batch import Batch
from emblema.testing import tiny_batch


def test_noise_belongs_to_the_sample_not_to_its_place():
    batch = tiny_batch(8)
    whole = batch.noise("mask", 3, 5)
    assert whole.shape == (8, 3, 5) and whole.min() >= 0 and whole.max() < 1
    torch.rand(7, generator=batch.generator)  # what others drew is nothing to it
    assert torch.equal(torch.cat([batch.rows(0, 3).noise("mask", 3, 5), batch.rows(3, 8).noise("mask", 3, 5)]), whole)
    assert not torch.equal(batch.noise("crop", 3, 5), whole)
    assert len({tuple(row.flatten().tolist()) for row in whole}) == 8


def test_noise_changes_with_the_step():
    batch = tiny_batch(2)
    before = batch.noise("mask", 4)
    batch.generator = torch.Generator().manual_seed(1)
    assert not torch.equal(batch.noise("mask", 4), before)
    with pytest.raises(ValueError, match=r"needs batch\.generator"):
        Batch(keys=["a"]).noise("mask", 4)
