"""The linear probe's choice of C beside scikit-learn's: same features, objective, tolerance and eight values of C.

    python benchmarks/probe.py [--images 1600] [--rounds 5] [--out results.jsonl]

The peer solves each C from zero, as sweeps of published probes do; "warm" starts each C at the solution of the last.
Features are noisy unit vectors of 100 classes, hard enough that C matters; validation accuracies are compared.
"""

from __future__ import annotations

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # for both sides

import argparse
import time

import torch
from side_by_side import compare, finish
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import normalize

from emblema.parts.logistic import choose_c

PATH = tuple(10.0**e for e in range(-3, 5))
TOLERANCE = 1e-5  # of the largest gradient, for both
CLASSES, WIDTH = 100, 512


def features(images: int, seed: int, noise: float = 5.0) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, D] unit and labels [N]."""
    means = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(images) % CLASSES
    return normalize(means[y] + noise * torch.randn(images, WIDTH, generator=g), dim=-1), y


def ours(x, y, x_val, y_val) -> list[float]:
    return [accuracy for _, accuracy in choose_c(x, y, x_val, y_val, CLASSES, PATH).path]


def scikit_learn(x, y, x_val, y_val, warm: bool) -> list[float]:
    found, model = [], LogisticRegression(max_iter=1000, tol=TOLERANCE, warm_start=warm)
    for c in PATH:
        model.set_params(C=c).fit(x.numpy(), y.numpy())
        found.append(float(model.score(x_val.numpy(), y_val.numpy())))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out")
    args = parser.parse_args()
    data = (*features(args.images, 1), *features(2000, 2))
    sides = {
        "emblema": lambda: ours(*data),
        "scikit-learn, each C from zero": lambda: scikit_learn(*data, warm=False),
        "scikit-learn, warm": lambda: scikit_learn(*data, warm=True),
    }
    accuracies = {name: side() for name, side in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, side in sides.items():
            began = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - began)
    own, *peers = sides
    what = f"linear probe, {args.images} images x {WIDTH}, {CLASSES} classes, {len(PATH)} values of C"
    gap = max(abs(a - b) for a, b in zip(accuracies[own], accuracies[peers[0]], strict=True))
    notes = [f"largest difference of the validation accuracies over the values of C: {gap:.4f}"]
    comparisons = [compare(what, seconds[own], peer, seconds[peer]) for peer in peers]
    finish("probe", comparisons, args.out, notes, images=args.images, rounds=args.rounds, accuracies=accuracies)


if __name__ == "__main__":
    main()
