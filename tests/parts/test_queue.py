"""The queue is first-in first-out, wraps, and survives a checkpoint."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emblema.parts.queue import FeatureQueue, SampleQueue


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 7), st.lists(st.integers(0, 9), max_size=6))
def test_holds_the_last_rows(size, pushes):
    queue, history = FeatureQueue(size, 2, "empty"), torch.zeros(0, 2)
    for n in pushes:
        rows = torch.arange(len(history), len(history) + n).float()[:, None].expand(n, 2)
        queue.push(rows)
        history = torch.cat([history, rows])
    kept = history[-size:] if len(history) else history
    assert len(queue) == len(kept) and sorted(queue.read()[:, 0].tolist()) == kept[:, 0].tolist()
    assert queue.warm == (len(history) >= size)


def test_random_start_is_unit_and_seeded():
    make = lambda: FeatureQueue(8, 4, generator=torch.Generator().manual_seed(1))
    queue = make()
    assert len(queue) == 8 and not queue.warm and torch.equal(queue.rows, make().rows)
    torch.testing.assert_close(queue.read().norm(dim=-1), torch.ones(8))


def test_read_is_not_changed_by_a_push():
    queue = FeatureQueue(4, 3)
    before = queue.read()
    expected = before.clone()
    queue.push(torch.ones(2, 3, requires_grad=True))
    assert torch.equal(before, expected) and not queue.rows.requires_grad


def test_save_and_load_continue_alike():
    queue = FeatureQueue(5, 3, "empty")
    queue.push(torch.randn(3, 3))
    other = FeatureQueue(5, 3, "empty")
    other.load_state_dict(queue.state_dict())
    rows = torch.randn(4, 3)
    queue.push(rows), other.push(rows)
    assert torch.equal(queue.read(), other.read()) and queue.pointer == other.pointer


def test_nearest():
    queue = FeatureQueue(6, 4)
    assert torch.equal(queue.nearest(queue.rows[[3, 0]]), queue.rows[[3, 0]])
    with pytest.raises(ValueError, match="empty"):
        FeatureQueue(6, 4, "empty").nearest(torch.ones(1, 4))
    with pytest.raises(ValueError, match=r"\[N, 4\]"):
        queue.push(torch.ones(2, 3))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 7), st.lists(st.integers(1, 9), max_size=6))
def test_samples_stay_together(size, pushes):
    queue = SampleQueue(size, {"z": torch.empty(2), "ids": torch.empty((), dtype=torch.long)})
    history = 0
    for n in pushes:
        ids = torch.arange(history, history + n)
        queue.push(z=ids[:, None].float().expand(n, 2), ids=ids)
        history += n
    found = queue.read()
    assert sorted(found["ids"].tolist()) == list(range(max(history - size, 0), history)) and len(queue) == len(
        found["z"]
    )
    assert torch.equal(found["z"][:, 0].long(), found["ids"]) and found["ids"].dtype == torch.long


def test_samples_must_fit():
    queue = SampleQueue(4, {"z": torch.empty(2)})
    with pytest.raises(ValueError, match="samples arrived as"):
        queue.push(z=torch.zeros(3, 5))
    with pytest.raises(ValueError, match="size >= 1"):
        SampleQueue(0, {"z": torch.empty(2)})
