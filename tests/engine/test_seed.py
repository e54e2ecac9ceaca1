import torch

from emblema.engine import seed


def test_a_place_names_one_stream():
    draw = lambda *place: torch.rand(4, generator=seed.generator(*place)).tolist()
    assert draw(1, "step", 3) == draw(1, "step", 3)
    assert len({tuple(draw(*p)) for p in [(1, "step", 3), (1, "step", 4), (2, "step", 3), (1, "epoch", 3)]}) == 4
    assert seed.number(1, "a", 23) != seed.number(1, "a", 2, 3)


def test_the_callers_random_state_is_restored():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seed.forked(1, "x"):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected) and not torch.equal(inside, expected)


def test_a_fork_leaves_no_call_behind():
    before = len(torch.cuda._queued_calls)
    for step in range(3):
        with seed.forked(0, "step", step):
            drawn = torch.rand(())
    assert len(torch.cuda._queued_calls) == before
    torch.manual_seed(seed.number(0, "step", 2))
    assert torch.rand(()) == drawn
