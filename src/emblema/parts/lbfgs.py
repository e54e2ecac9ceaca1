"""L-BFGS for many small problems side by side; each has its own memory, step length and end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Pairs = deque[tuple[Tensor, Tensor, Tensor]]  # steps [S, P], changes of the gradient [S, P], 1 / curvature [S] or 0


def lbfgs(objective: Objective, w: Tensor, tol: float, max_steps: int, memory: int = 10) -> tuple[Tensor, Tensor]:
    """Limited-memory BFGS (Nocedal & Wright, algorithms 7.4 and 7.5) with a weak Wolfe line search.

    `w` [S, P] are S problems of one shape, solved side by side; each leaves when it is done. Returns the solutions and
    the steps [S] that each took.
    """
    out, steps = w.clone(), torch.full((len(w),), max_steps)
    which = torch.arange(len(w))
    value, gradient = objective(w, which)
    pairs: Pairs = deque(maxlen=memory)
    scale, known = torch.ones(len(w)), torch.zeros(len(w), dtype=torch.bool)  # known: there are pairs
    stuck = torch.zeros(len(w), dtype=torch.bool)
    for step in range(max_steps):
        done = stuck | (gradient.abs().amax(1) <= tol)
        if done.any():
            out[which[done]], steps[which[done]] = w[done], step
            keep = ~done
            if not keep.any():
                return out, steps
            w, value, gradient, which, scale, known = (t[keep] for t in (w, value, gradient, which, scale, known))
            pairs = deque([(s[keep], d[keep], rho[keep]) for s, d, rho in pairs], maxlen=memory)
        direction = -_inverse_hessian(gradient, pairs, scale)
        slope = (direction * gradient).sum(1)
        uphill = slope >= 0  # rounding has spoilt the memory
        if uphill.any():
            _forget(pairs, uphill, scale, known)
            direction[uphill] = -gradient[uphill]
            slope[uphill] = -gradient[uphill].pow(2).sum(1)
        first = torch.where(known, 1.0, 1 / gradient.norm(dim=1))
        found, w_new, value, new = _wolfe(objective, w, value, gradient, direction, slope, first, which)
        stuck = ~found & ~known  # fp32 cannot tell a better point
        _forget(pairs, ~found, scale, known)
        s, d = w_new - w, new - gradient
        curvature, size = (s * d).sum(1), d.pow(2).sum(1)
        good = found & (curvature > 1e-10 * size)
        pairs.append((s, d, torch.where(good, 1 / curvature, 0)))
        scale = torch.where(good, curvature / size, scale)
        known |= good
        w, gradient = w_new, new
    out[which] = w
    return out, steps


def _forget(pairs: Pairs, those: Tensor, scale: Tensor, known: Tensor) -> None:
    for _, _, rho in pairs:
        rho[those] = 0
    scale[those], known[those] = 1, False


def _inverse_hessian(gradient: Tensor, pairs: Pairs, scale: Tensor) -> Tensor:
    q, alphas = gradient.clone(), []
    for s, d, rho in reversed(pairs):
        alphas.append(rho * (s * q).sum(1))
        q.sub_(alphas[-1][:, None] * d)
    q *= scale[:, None]
    for (s, d, rho), alpha in zip(pairs, reversed(alphas)):
        q.add_((alpha - rho * (d * q).sum(1))[:, None] * s)
    return q


def _wolfe(objective: Objective, w, value, gradient, direction, slope, step, which):
    """Steps of sufficient decrease and curvature: (found [S], points, values, gradients).

    The next try is where the slope, taken as linear between the last two tries, is zero, kept away from the ends of the
    interval that holds a good step; the middle, where the slope does not rise. A problem without one in 30 tries
    stays where it is.
    """
    low, high, slope_low = torch.zeros(len(w)), torch.full((len(w),), torch.inf), slope.clone()
    found, waiting = torch.zeros(len(w), dtype=torch.bool), torch.arange(len(w))
    w_new, value_new, gradient_new = w.clone(), value.clone(), gradient.clone()
    for _ in range(30):
        at, down, along = step[waiting], slope[waiting], direction[waiting]
        there = w[waiting] + at[:, None] * along
        new, turned = objective(there, which[waiting])
        old, slope_at = value[waiting], (turned * along).sum(1)
        far = ~(new <= old + 1e-4 * (at * down).double() + 1e-12 * old.abs())  # NaN is far too
        near = ~far & (slope_at < 0.9 * down)
        good = ~(far | near)
        w_new[waiting[good]], value_new[waiting[good]], gradient_new[waiting[good]] = (
            there[good],
            new[good],
            turned[good],
        )
        found[waiting[good]] = True
        if good.all():
            break
        begin, falls = low[waiting], slope_low[waiting]
        level = begin + (at - begin) * falls / (falls - slope_at)  # negative or infinite where the slope got steeper
        level = torch.where(slope_at > falls, level, torch.inf)
        high[waiting[far]], low[waiting[near]], slope_low[waiting[near]] = at[far], at[near], slope_at[near]
        begin, end = low[waiting], high[waiting]
        margin = 0.1 * (end - begin)
        within = torch.minimum(torch.maximum(level, begin + margin), end - margin)
        within = torch.where(level.isinf(), (begin + end) / 2, within)
        step[waiting] = torch.where(end.isinf(), level.clamp(2 * at, 10 * at), within)
        waiting = waiting[~good]
    return found, w_new, value_new, gradient_new
