"""Every builder returns rows that sum to 1, and says what its paper says."""

import functools

import ot
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from emblema.objectives import targets
from emblema.objectives.contrastive import image_text_contrastive
from emblema.objectives.transport import sinkhorn

few = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 9999)


def unit(n: int, seed: int, d: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=-1)


BUILDERS = {
    "identity": lambda i, t, g: targets.identity(len(i)),
    "smoothing": lambda i, t, g: targets.smoothing(targets.identity(len(i)), 0.1),
    "smoothing n-1": lambda i, t, g: targets.smoothing(targets.identity(len(i)), 0.1, "n_minus_1"),
    "smoothing soft": lambda i, t, g: targets.smoothing(targets.momentum_softmax(i, t, 5.0), 0.1, "n_minus_1"),
    "label": lambda i, t, g: targets.label_match(torch.randint(3, (len(i),), generator=g)),
    "text": lambda i, t, g: targets.text_hash([f"A {k % 2}" for k in range(len(i))]),
    "transport": lambda i, t, g: targets.transport(i, t),
    "transport t2i": lambda i, t, g: targets.transport(i, t, direction="t2i", epsilon=0.01),
    "neighbour": lambda i, t, g: targets.nearest_neighbour(t, unit(3, 0))[1],
    "momentum": lambda i, t, g: targets.momentum_softmax(i, t, 20.0),
    "mixup": lambda i, t, g: targets.mixup(len(i), 0.3),
}


@pytest.mark.parametrize("name", BUILDERS)
@few
@given(seeds, st.integers(2, 9))
def test_rows_sum_to_one(name, seed, n):
    y = BUILDERS[name](unit(n, seed), unit(n, seed + 1), torch.Generator().manual_seed(seed))
    assert y.shape == (n, n) and (y >= 0).all()
    torch.testing.assert_close(y.double().sum(1), torch.ones(n, dtype=torch.float64), atol=1e-5, rtol=0)


@few
@given(seeds, st.integers(2, 9), st.floats(0.01, 0.9))
def test_the_two_smoothings_are_one_family(seed, n, share):
    logits = 10 * unit(n, seed) @ unit(n, seed + 1).T
    eye = torch.eye(n, dtype=torch.float64)
    ours = F.cross_entropy(logits, targets.smoothing(eye, share * (n - 1) / n, "n_minus_1"))
    theirs = F.cross_entropy(logits, torch.arange(n), label_smoothing=share)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(F.cross_entropy(logits, targets.smoothing(eye, share)), theirs)


@few
@given(seeds, st.integers(1, 8), st.integers(2, 8))
def test_oracle_transport(seed, rounds, n):
    """POT scales columns first: the same plan, for any number of rounds, on the transposed cost."""
    score = unit(n, seed) @ unit(n, seed + 1).T
    mass = torch.full((n,), 1 / n, dtype=torch.float64)
    expected = ot.sinkhorn(mass, mass, -score.T, 0.15, numItermax=rounds, stopThr=0, warn=False).T
    torch.testing.assert_close(sinkhorn(score, 0.15, rounds), expected, rtol=1e-9, atol=1e-12)


def test_transport_converges_to_its_marginals():
    rows = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    columns = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    plan = sinkhorn(unit(3, 0) @ unit(4, 1).T, 0.1, 300, rows, columns)
    torch.testing.assert_close(plan.sum(1), rows)
    torch.testing.assert_close(plan.sum(0), columns)
    assert sinkhorn(torch.full((2, 2), 1e4), 0.01, 5).isfinite().all()


def test_transport_leaves_the_pair_out():
    z_image, z_text = unit(6, 0), unit(6, 1)
    y = targets.transport(z_image, z_text)
    assert float(y.diagonal().max()) < 1e-20
    score = z_image @ z_image.T + z_text @ z_text.T + z_image @ z_text.T - 200 * torch.eye(6)
    mass = torch.full((6,), 1 / 6, dtype=torch.float64)
    plan = ot.sinkhorn(mass, mass, -score.T, 0.15, numItermax=5, stopThr=0, warn=False).T
    torch.testing.assert_close(y, plan / plan.sum(1, keepdim=True))


def test_equal_texts_share():
    y = targets.text_hash(["A  dog, running!", "a dog running", "A cat", "!!", "??"])
    assert y[0].tolist() == [0.5, 0.5, 0, 0, 0] and y[3].tolist() == [0, 0, 0, 1, 0]
    assert torch.equal(y, targets.label_match(torch.tensor([0, 0, 1, 2, 3])))
    assert targets.normalise_text("Ein Café_Bild") == "ein café bild"


def test_momentum_softmax_with_alpha_zero_is_hard():
    z_image, z_text = unit(4, 0), unit(4, 1)
    assert torch.equal(targets.momentum_softmax(z_image, z_text, 9.0, alpha=0.0), torch.eye(4, dtype=torch.float64))
    expected = 0.4 * (9 * z_image @ z_text.T).softmax(1) + 0.6 * torch.eye(4)
    torch.testing.assert_close(targets.momentum_softmax(z_image, z_text, 9.0), expected)


def test_mixup_is_the_mixed_loss():
    z_image, z_text = unit(5, 0), unit(5, 1)
    s = 9 * z_image @ z_text.T
    mine, partner = torch.arange(5), torch.arange(5).flip(0)
    expected = sum(0.3 * F.cross_entropy(x, mine) + 0.7 * F.cross_entropy(x, partner) for x in (s, s.T))
    ours = image_text_contrastive(z_image, z_text, 9.0, targets.mixup(5, 0.3), reduction="sum")
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_neighbours():
    queue = unit(7, 3)
    neighbours, y = targets.nearest_neighbour(queue[[2, 4, 2]], queue)
    assert torch.equal(neighbours, queue[[2, 4, 2]]) and y[0].tolist() == [0.5, 0, 0.5]


def test_errors_teach():
    with pytest.raises(ValueError, match="n_minus_1"):
        targets.smoothing(torch.eye(1), 0.1, "n_minus_1")
    with pytest.raises(ValueError, match="at least 2 pairs"):
        targets.transport(unit(1, 0), unit(1, 1))
    with pytest.raises(ValueError, match="Beta"):
        targets.mixup(3, 2.0)
    with pytest.raises(ValueError, match="epsilon > 0"):
        sinkhorn(torch.zeros(2, 2), 0.0, 1)


def test_a_builder_is_any_callable_on_features():
    builder: targets.TargetBuilder = functools.partial(targets.transport, epsilon=0.1)
    assert builder(unit(3, 0), unit(3, 1)).shape == (3, 3)
