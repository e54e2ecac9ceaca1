import torch

from emblema.parts.lbfgs import lbfgs


def rosenbrock(shift):
    """Valleys with their lowest point at `shift` [S]."""

    def objective(w, which):
        x, y = (w - shift[which, None]).unbind(1)
        a, b = x, y - x**2 - 2 * x  # the usual form, moved so that (0, 0) is the lowest point
        gradient = torch.stack([2 * a - 200 * b * (2 * x + 2), 200 * b], 1)
        return (a**2 + 100 * b**2).double(), gradient

    return objective


def test_each_problem_finds_its_own_lowest_point():
    shift = torch.tensor([0.0, 0.5, -2.0])
    w, steps = lbfgs(rosenbrock(shift), torch.full((3, 2), 1.5), tol=1e-4, max_steps=500)
    torch.testing.assert_close(w, shift[:, None].expand(3, 2), atol=1e-3, rtol=0)
    assert (steps < 200).all() and len(steps.unique()) > 1


def test_a_step_is_rarely_tried_twice_where_the_slope_is_nearly_linear():
    """Of a convex bowl whose axes differ a hundredfold, from a start with a gradient far from 1."""
    scales = torch.logspace(-4, -2, 40)
    asked = 0

    def objective(w, which):
        nonlocal asked
        asked += 1
        return (0.5 * scales * (w - 1) ** 2).sum(1).double(), scales * (w - 1)

    w, steps = lbfgs(objective, torch.zeros(1, 40), tol=1e-7, max_steps=200)
    torch.testing.assert_close(w, torch.ones(1, 40), atol=2e-3, rtol=0)
    assert asked <= int(steps) + 4


def test_what_is_not_a_number_is_too_far():
    """sqrt of a negative number past the lowest point's far side: the search comes back."""

    def objective(w, which):
        value = -((2 - w).sqrt() * w).sum(1)
        return value.double(), -((2 - w).sqrt() - w / (2 * (2 - w).sqrt()))

    w, _ = lbfgs(objective, torch.full((1, 1), 0.1), tol=1e-6, max_steps=100)
    torch.testing.assert_close(w, torch.full((1, 1), 4 / 3), atol=1e-3, rtol=0)
