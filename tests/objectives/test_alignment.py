"""Eqs. 10-11 against loops and torchvision, and the sampling of hard negatives."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import sigmoid_focal_loss

from emblema.objectives.alignment import (
    hard_negatives,
    image_text_matching,
    image_text_matching_bce,
    region_word,
    region_word_bce,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_eq_10_as_a_loop():
    logits, matched = torch.randn(6, 2, generator=seeded()), torch.tensor([1, 0, 0, 1, 0, 0])
    terms = [math.log(sum(math.exp(v) for v in row)) - row[p] for row, p in zip(logits.tolist(), matched.tolist())]
    assert float(image_text_matching(logits, matched)) == pytest.approx(sum(terms) / 6)
    # the two forms agree when the two-way logits are (0, score)
    scores = logits[:, 1]
    two_way = torch.stack([torch.zeros(6), scores], dim=1)
    torch.testing.assert_close(image_text_matching_bce(scores, matched), image_text_matching(two_way, matched))
    with pytest.raises(ValueError, match="image_text_matching_bce"):
        image_text_matching(scores, matched)


def test_eq_11_as_a_loop():
    logits, targets = (
        torch.randn(3, 4, generator=seeded()),
        torch.tensor([[1, 1, 0, 0], [0] * 4, [0, 0, 1, 0]]),
    )
    total = 0.0
    for logit, p in zip(logits.flatten().tolist(), targets.flatten().tolist()):
        s = 1 / (1 + math.exp(-logit))
        total -= p * math.log(s) + (1 - p) * math.log(1 - s)
    assert float(region_word_bce(logits, targets)) == pytest.approx(total / 12, rel=1e-5)
    plain = region_word(logits, targets, alpha=0.5, gamma=0.0, normaliser="sum")
    assert float(plain) == pytest.approx(total / 2, rel=1e-5)  # focal with nothing to focus on


def test_oracle_focal():
    logits, targets = (
        4 * torch.randn(2, 5, 7, generator=seeded()),
        torch.rand(2, 5, 7, generator=seeded(1)) < 0.2,
    )
    expected = sigmoid_focal_loss(logits, targets.float(), 0.25, 2, "sum")
    torch.testing.assert_close(region_word(logits, targets, normaliser="sum"), expected)
    torch.testing.assert_close(region_word(logits, targets), expected / targets.any(-1).sum())


def test_padded_tokens_do_not_count():
    logits, targets = torch.randn(2, 5, 7, generator=seeded()), torch.rand(2, 5, 7, generator=seeded(1)) < 0.3
    real = torch.arange(7) < torch.tensor([[7], [4]])  # [B, L]
    targets = targets & real[:, None]
    cut = sum(region_word(logits[i, :, :n], targets[i, :, :n], normaliser="sum") for i, n in enumerate((7, 4)))
    torch.testing.assert_close(region_word(logits, targets, real, normaliser="sum"), cut)
    assert float(region_word(logits, targets & False, real)) < torch.inf  # no positive region: divided by 1


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 8), st.integers(0, 5), st.integers(0, 999), st.sampled_from([0.0, 10.0, 1e4]))
def test_negatives_are_negative(n, queue, seed, scale):
    similarity, noise = scale * torch.randn(n, n + queue, generator=seeded(seed)), torch.rand(n, generator=seeded(seed))
    drawn = hard_negatives(similarity, torch.eye(n, n + queue), noise)
    assert (drawn != torch.arange(n)).all() and (drawn >= 0).all() and (drawn < n + queue).all()
    for edge in (0.0, 1.0):  # the ends of the numbers draw candidates too
        at = hard_negatives(similarity, torch.eye(n, n + queue), torch.full((n,), edge))
        assert (at != torch.arange(n)).all() and (at >= 0).all() and (at < n + queue).all()


def test_negatives_are_hard_and_never_equal():
    similarity = torch.zeros(4, 4)
    similarity[0, 2] = similarity[3, 1] = 1e3  # row 0 would round to all zeros once its diagonal is removed
    similarity[0, 0] = 2e3
    drawn = hard_negatives(similarity, torch.eye(4), torch.rand(4, generator=seeded()))
    assert drawn[0] == 2 and drawn[3] == 1
    equal = torch.eye(4, dtype=torch.bool)
    equal[0, 2] = True
    assert all(hard_negatives(similarity, equal, torch.rand(4, generator=seeded(s)))[0] != 2 for s in range(20))


def test_frequencies_follow_the_softmax():
    similarity = torch.tensor([[0.0, 1.0, 0.0]]).expand(800, 3)
    pair = torch.tensor([[True, False, False]]).expand(800, 3)
    draws = hard_negatives(similarity, pair, torch.rand(800, generator=seeded()))
    assert float((draws == 1).float().mean()) == pytest.approx(math.e / (math.e + 1), abs=0.05)


def test_who_has_no_negative_is_told_apart():
    equal = torch.tensor([[True, True], [True, False]])
    assert hard_negatives(torch.zeros(2, 2), equal, torch.full((2,), 0.5)).tolist() == [-1, 1]
    assert hard_negatives(torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1)).tolist() == [-1]


def test_errors_teach():
    with pytest.raises(ValueError, match=r"expected \[B, N\]"):
        hard_negatives(torch.zeros(2, 3), torch.ones(2, 2), torch.zeros(2))
    with pytest.raises(ValueError, match="normaliser"):
        region_word(torch.zeros(1, 1), torch.zeros(1, 1), normaliser="tokens")
