"""Masks hide what they should, as often as they should, and nothing else."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.flava.image_processing_flava import FlavaMaskingGenerator

from emblema.parts.masking import block_patches, mask_tokens, random_patches

PAD, BOS, EOS, MASK, V = 0, 1, 2, 3, 1000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(4, 40), st.sampled_from([0.0, 0.5, 0.75]))
def test_random_patches(seed, P, ratio):
    noise = torch.rand(3, P, generator=seeded(seed))
    kept, masked = random_patches(noise, ratio)
    assert kept.shape == (3, int(P * (1 - ratio)))
    assert torch.equal(masked.sum(1), torch.full((3,), P - kept.shape[1]))
    assert not masked.gather(1, kept).any()
    assert (noise.masked_fill(masked, -1).max(1).values <= noise.masked_fill(~masked, 2).min(1).values).all()


def test_blocks_hide_as_many_as_the_oracle():
    counts = [int(block_patches((14, 14), 75, seeded(s)).sum()) for s in range(200)]
    assert max(counts) <= 75
    random.seed(0)
    oracle = [int(FlavaMaskingGenerator()().sum()) for _ in range(200)]
    assert sum(counts) / 200 == pytest.approx(sum(oracle) / 200, abs=1.0)
    assert torch.equal(block_patches((14, 14), 75, seeded(5)), block_patches((14, 14), 75, seeded(5)))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(0, 16))
def test_small_grids_end(seed, count):
    assert int(block_patches((4, 4), count, seeded(seed), smallest=1).sum()) <= count


@pytest.mark.parametrize("random", [seeded(1), torch.rand(400, 3, 60, generator=seeded(1))], ids=["drawn", "given"])
def test_token_rates(random):
    ids = torch.randint(4, V, (400, 50), generator=seeded())
    before = ids.clone()
    corrupted, targets = mask_tokens(ids, torch.tensor([PAD, BOS, EOS]), MASK, V, random)
    selected = targets != -100
    assert torch.equal(ids, before) and torch.equal(targets[selected], ids[selected])
    assert torch.equal(corrupted[~selected], ids[~selected])
    assert float(selected.float().mean()) == pytest.approx(0.15, abs=0.01)
    was_masked = (corrupted == MASK)[selected].float().mean()
    unchanged = (corrupted == ids)[selected].float().mean()
    assert float(was_masked) == pytest.approx(0.8, abs=0.03) and float(unchanged) == pytest.approx(0.1, abs=0.03)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.booleans())
def test_special_tokens_are_never_selected(seed, at_least_one):
    ids = torch.tensor([[BOS, 7, 8, EOS, PAD], [BOS, EOS, PAD, PAD, PAD], [BOS, 9, EOS, PAD, PAD]])
    special = ids < 3
    corrupted, targets = mask_tokens(ids, special, MASK, V, seeded(seed), at_least_one=at_least_one)
    assert torch.equal(corrupted[special], ids[special]) and (targets[special] == -100).all()
    if at_least_one:
        assert ((targets != -100).sum(1) >= torch.tensor([1, 0, 1])).all()


def test_errors_teach():
    with pytest.raises(ValueError, match="Change ratio"):
        random_patches(torch.rand(1, 4), 0.99)
    with pytest.raises(ValueError, match="4x4"):
        block_patches((4, 4), 17, seeded())
