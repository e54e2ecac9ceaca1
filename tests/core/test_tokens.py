"""Positions stay right through every operation of Tokens."""

import pytest
import torch

from emblema.core.tokens import Tokens


def image_tokens(batch=2, grid=(2, 3), width=4):
    x = torch.arange(batch * (1 + grid[0] * grid[1]) * width, dtype=torch.float32)
    return Tokens(x.view(batch, -1, width), torch.zeros(batch, dtype=torch.long), first_patch=1, grid=grid)


def text_tokens(lengths=(4, 6), width=4, shared=1):
    length = torch.tensor(lengths)
    x = torch.randn(len(lengths), max(lengths), width, generator=torch.Generator().manual_seed(0))
    x[:, :shared] = x[:1, :shared]
    return Tokens(x, length - 1, length=length, shared=shared)


@pytest.mark.parametrize(("at", "pool_at", "first"), [(0, 2, 3), (1, 0, 3), (None, 0, 1), (7, 0, 1)])
def test_insert_moves_what_stands_behind(at, pool_at, first):
    before = image_tokens()
    prompt = torch.full((2, 4), -1.0)
    after = before.insert(prompt, at)
    assert after.pool_at.tolist() == [pool_at] * 2 and after.first_patch == first
    assert after.patches().equal(before.patches())  # the patches are still found
    assert after.pooled().equal(before.pooled())
    place = after.x.shape[1] - 2 if at is None else at
    assert after.x[:, place : place + 2].eq(-1).all()


def test_insert_moves_end_of_text_and_length():
    before = text_tokens()
    after = before.insert(torch.zeros(3, 4), at=1)
    assert after.pool_at.tolist() == [6, 8] and after.length.tolist() == [7, 9]
    assert after.pooled().equal(before.pooled())
    assert after.real().sum(1).tolist() == [7, 9]


def test_shared_prefix_follows_prompts():
    tokens = text_tokens(shared=3)
    assert tokens.insert(torch.zeros(2, 4), at=1).shared == 5  # one prompt for all rows
    assert tokens.insert(torch.zeros(2, 2, 4), at=1).shared == 1  # one a row
    assert tokens.insert(torch.zeros(1, 2, 4), at=3).shared == 5
    assert tokens.insert(torch.zeros(1, 2, 4), at=4).shared == 3
    assert tokens.swap(torch.zeros(1, 4), at=1).shared == 3
    assert tokens.swap(torch.zeros(2, 1, 4), at=1).shared == 1
    assert tokens.where(torch.zeros(2, 6, dtype=torch.bool), torch.zeros(4)).shared == 0


@pytest.mark.parametrize("prompt", [torch.zeros(2, 5), torch.zeros(3, 2, 4)])
def test_prompts_that_do_not_fit(prompt):
    with pytest.raises(ValueError, match="cannot join"):
        image_tokens().insert(prompt, 1)


def test_no_prompt_between_patches_or_in_padding():
    with pytest.raises(ValueError, match="between the patches"):
        image_tokens().insert(torch.zeros(1, 4), 3)
    with pytest.raises(ValueError, match="shortest text"):
        text_tokens().insert(torch.zeros(1, 4), None)
    assert text_tokens((5, 5)).insert(torch.zeros(1, 4), None).x.shape == (2, 6, 4)


def test_swap_overwrites():
    tokens = image_tokens()
    after = tokens.swap(torch.full((2, 4), 9.0), None)
    assert after.x[:, -2:].eq(9).all() and after.x[:, :-2].equal(tokens.x[:, :-2])
    assert tokens.swap(torch.full((2, 2, 4), 9.0), 0).x[:, :2].eq(9).all()


def test_where_marks_patches_of_images_and_tokens_of_texts():
    tokens = image_tokens()
    mask = torch.zeros(2, 2, 3, dtype=torch.bool)
    mask[0, 1, 2] = True
    after = tokens.where(mask, torch.full((4,), 7.0))
    assert after.patches()[0, 5].eq(7).all() and (after.x != tokens.x).any(-1).sum() == 1
    text = text_tokens()
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[1, 2] = True
    assert text.where(mask, torch.full((4,), 7.0)).x[1, 2].eq(7).all()
    with pytest.raises(ValueError, match="does not fit"):
        text.where(mask[:, :3], torch.zeros(4))


def test_hide_keeps_what_is_named():
    tokens = image_tokens()
    kept = tokens.hide(torch.tensor([[0, 4], [5, 1]]))
    assert kept.x.shape == (2, 3, 4) and kept.grid is None
    assert kept.x[1, 1].equal(tokens.patches()[1, 5]) and kept.x[:, 0].equal(tokens.x[:, 0])
    with pytest.raises(ValueError, match="no patch grid"):
        kept.patches()


def test_read_only_mask():
    after = image_tokens().insert(torch.zeros(2, 4), None, read_only=True)
    visible = after.visible
    assert not visible[:7, 7:].any() and visible[7:].all() and visible[:7, :7].all()
    again = after.insert(torch.zeros(1, 4), 1)  # an ordinary prompt is read by all, and moves the mask
    assert again.visible.shape == (10, 10) and again.visible[:, 1].all()
    assert not again.visible[:8, 8:].any()  # nor may it read and retell what is not to be read
    twice = after.insert(torch.zeros(1, 4), None, read_only=True).visible
    assert not twice[:9, 9:].any() and twice[9].all()


def test_around_takes_the_neighbours_of_each_place():
    tokens = image_tokens()  # a grid of 2 x 3
    alone = tokens.around(0)
    assert alone.grid == (1, 1) and alone.x.shape == (12, 2, 4)
    assert alone.patches()[:6, 0].equal(tokens.patches()[0]) and alone.pooled()[6:].equal(tokens.pooled()[1].expand(6, -1))
    with pytest.raises(ValueError, match="no neighbourhood of 3x3"):
        tokens.around(1)
    wide = Tokens(torch.arange(21.0)[None, :, None], torch.tensor([0]), first_patch=1, grid=(4, 5)).around(1)
    assert wide.patches()[7, :, 0].tolist() == [2, 3, 4, 7, 8, 9, 12, 13, 14]  # row 1, column 2 has value 8
    assert wide.patches()[0].equal(wide.patches()[6])  # the corner stands in the nearest whole neighbourhood
    last = Tokens(torch.arange(21.0)[None, :, None], torch.tensor([20]), first_patch=0, grid=(4, 5)).around(1)
    assert last.pooled().flatten().tolist() == [20.0] * 20
    with pytest.raises(ValueError, match="read-only prompts"):
        tokens.insert(torch.zeros(2, 4), None, read_only=True).around(0)
