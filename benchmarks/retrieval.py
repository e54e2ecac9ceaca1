"""R@K over 5,000 images and 25,000 captions: counting ranks in tiles against the full matrix and top-k.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/retrieval.py --out results/retrieval.jsonl

Both sides give the same R@1, 5, 10 in both directions (checked). Variants take turns; ratios are of one round.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from side_by_side import compare, finish, settings_of

from emblema.tasks.places import ranks


def features(images: int, captions: int, dim: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    z_image = F.normalize(torch.randn(images, dim, generator=g), dim=-1)
    owner = torch.arange(captions) * images // captions
    z_text = F.normalize(z_image[owner] + 5.3 * F.normalize(torch.randn(captions, dim, generator=g), dim=-1), dim=-1)
    return z_image, z_text, owner


def full(z_image, z_text, owner):
    """The usual way: the whole matrix, its ten best in both directions, then who is among them."""
    score = z_image @ z_text.T
    to_text = owner[score.topk(10, 1).indices] == torch.arange(len(z_image))[:, None]
    to_image = owner[:, None] == score.topk(10, 0).indices.T
    return [float(hit[:, :k].any(1).float().mean()) for hit in (to_text, to_image) for k in (1, 5, 10)]


def ours(z_image, z_text, owner):
    pairs = torch.stack([owner, torch.arange(len(owner))], 1)
    return [float((r <= k).float().mean()) for r in ranks(z_image, z_text, pairs) for k in (1, 5, 10)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--captions", type=int, default=25000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out")
    options = parser.parse_args()
    given = features(options.images, options.captions, options.dim)
    expected, found = full(*given), ours(*given)
    assert max(abs(a - b) for a, b in zip(expected, found)) < 1e-4, (expected, found)
    seconds: dict[str, list[float]] = {"full": [], "ours": []}
    processor: dict[str, list[float]] = {"full": [], "ours": []}
    for _ in range(options.rounds):
        for name, run in (("full", full), ("ours", ours)):
            began, busy = time.perf_counter(), time.process_time()
            run(*given)
            seconds[name].append(time.perf_counter() - began)
            processor[name].append(time.process_time() - busy)
    shape = f"{options.images:,} x {options.captions:,}"
    finish(
        "retrieval",
        [compare(f"R@1, 5, 10 both ways, {shape}, exact", seconds["ours"], "full matrix and top-k", seconds["full"])],
        options.out,
        ["the ratio in processor time is {:.2f}".format(sum(processor["full"]) / sum(processor["ours"]))],
        recalls=found,
        settings=settings_of(options),
    )


if __name__ == "__main__":
    main()
