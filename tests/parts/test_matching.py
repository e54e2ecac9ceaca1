"""Where a caption's words are, and which box holds them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emblema.parts.matching import Matcher, best_box, box_sums, word_maps
from emblema.parts.words import exchanged, mentions, named_at
from emblema.testing import ByteTokenizer


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999))
def test_box_sums_as_a_loop(seed):
    g = torch.Generator().manual_seed(seed)
    map_ = torch.rand(7, 9, generator=g)
    corner = torch.randint(-2, 9, (5, 2), generator=g)
    boxes = torch.cat([corner, corner + torch.randint(0, 6, (5, 2), generator=g)], 1).float()
    slow = [
        sum(float(map_[y, x]) for y in range(7) for x in range(9) if x1 <= x < x2 and y1 <= y < y2)
        for x1, y1, x2, y2 in boxes.long().tolist()
    ]
    torch.testing.assert_close(box_sums(map_, boxes), torch.tensor(slow, dtype=torch.float32), atol=1e-5, rtol=0)


def test_a_map_that_fills_a_box_picks_that_box():
    map_ = torch.zeros(16, 16)
    map_[4:10, 3:11] = 0.7
    nested = torch.tensor([[4, 5, 9, 9], [3, 4, 11, 10], [2, 3, 12, 11], [0, 0, 16, 16]]).float()
    assert best_box(map_, nested) == 1
    # sum / sqrt(area) of a uniform box is sqrt(area): a larger one of the same density wins
    map_[4:10, 3:15] = 0.7
    assert best_box(map_, torch.tensor([[3, 4, 11, 10], [3, 4, 15, 10]]).float()) == 1


def test_what_cannot_win():
    map_ = torch.zeros(8, 8)
    assert best_box(map_, torch.tensor([[0, 0, 4, 4]]).float()) is None  # a flat map is nowhere
    map_[2, 2] = 1
    assert best_box(map_, torch.empty(0, 4)) is None
    assert best_box(map_, torch.tensor([[-1, 0, 4, 4], [1, 1, 1, 5], [0, 0, 9, 4]]).float()) is None
    assert best_box(map_, torch.tensor([[-1, 0, 4, 4], [5, 5, 8, 8]]).float()) == 1
    map_[5:, 5:] = 0.49  # below half of the maximum it does not count
    assert best_box(map_, torch.tensor([[5, 5, 8, 8], [2, 2, 3, 3]]).float()) == 1


def test_maps_are_attention_by_its_positive_gradient():
    torch.manual_seed(0)
    matcher = Matcher(12, width=16, heads=2)
    words, places = torch.randn(2, 4, 12), torch.randn(2, 5, 12)
    real = torch.tensor([[True] * 4, [True, True, False, False]])
    maps = word_maps(matcher, words, real, places)
    logits, attention = matcher.shown(words, real, places)
    for pair in range(2):
        (gradient,) = torch.autograd.grad(logits[pair, 1], attention, retain_graph=True)
        assert (gradient[1 - pair] == 0).all()  # pairs do not hear one another
        slow = sum(attention[pair, head] * gradient[pair, head].clamp(min=0) for head in range(2)) / 2
        torch.testing.assert_close(maps[pair], slow.detach(), atol=1e-6, rtol=1e-4)
    assert (maps[1, 2:] == 0).all()  # padding helps no match
    alone = word_maps(matcher, words[1:, :2], real[1:, :2], places[1:])
    torch.testing.assert_close(alone[0], maps[1, :2], atol=1e-6, rtol=1e-4)


def test_classes_are_found_as_words():
    assert named_at("Buses, a bus and a busker", "bus") == [(0, 5), (9, 12)]
    assert named_at("a fire_truck", "fire truck") == [] and named_at("fire trucks", "fire_truck") == [(0, 11)]
    found = mentions(ByteTokenizer(), "a cat on a mat", ["dog", "mat", "cat"])
    assert found == {1: [12, 13, 14], 2: [3, 4, 5]}  # token 0 begins the text


def test_read_and_weights_are_the_attention():
    from emblema.encoders.block import CrossAttention

    torch.manual_seed(0)
    cross = CrossAttention(16, 2, 12)
    x, memory = torch.randn(2, 3, 16), torch.randn(2, 5, 12)
    weights = cross.weights(x, memory)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 3))
    torch.testing.assert_close(cross.read(weights, memory), cross(x, memory))


def test_a_matcher_learns_to_match():
    torch.manual_seed(0)
    matcher = Matcher(8, width=16, heads=2)
    words, places, real = torch.randn(6, 2, 8), torch.randn(6, 4, 8), torch.ones(6, 2, dtype=torch.bool)
    places[:, 1] = words[:, 0]  # what is said is in the picture
    optimiser = torch.optim.AdamW(matcher.parameters(), lr=3e-3)
    first = None
    for _ in range(60):
        logits = torch.cat([matcher(words, real, places), matcher(words, real, places.roll(1, 0))])
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([1] * 6 + [0] * 6))
        first = first or loss.item()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < first / 2 and first == pytest.approx(0.7, abs=0.3)


def test_a_class_is_exchanged_wherever_it_is_named():
    assert exchanged("a red bus left of two buses, busy", "bus", "fire_truck") == (
        "a red fire truck left of two fire trucks, busy"
    )
    assert exchanged("a cat", "dog", "bus") == "a cat"
