"""What keeping freed memory is worth (`emblema.engine.allocator`): the same work in processes that take turns.

    python benchmarks/allocator.py [--rounds 7] [--pictures 64] [--out results.jsonl]

The default model encodes pictures, and gives the gradient of their embeddings by their pixels. Each piece of work has
processes of its own: what one leaves on the heap changes what the next one finds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from side_by_side import compare, finish

WORK = {"encode bf16": ("bf16", False), "encode fp32": ("fp32", False), "gradient by pixels fp32": ("fp32", True)}


def serve(keep: bool, work: str, pictures: int, threads: int) -> None:
    """The seconds that the work takes, once for each line of standard input."""
    import torch

    import emblema
    from emblema.engine.allocator import keep_freed
    from emblema.engine.precision import autocast

    assert not keep or keep_freed(), "freed memory cannot be kept here"
    torch.set_num_threads(threads)
    vlm = emblema.load("default").vlm.requires_grad_(False)
    size = vlm.image.image_size
    pixels = torch.randint(0, 256, (pictures, 3, size, size), generator=torch.Generator().manual_seed(0)).float()
    precision, gradient = WORK[work]
    for _ in sys.stdin:
        began = time.perf_counter()
        with torch.set_grad_enabled(gradient), autocast(precision):
            z = vlm.encode_image((pixels / 255).requires_grad_(gradient))
        if gradient:
            z.sum().backward()
        print(time.perf_counter() - began, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out")
    parser.add_argument("--serve", nargs=2, metavar=("keep|leave", "WORK"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        how, work = args.serve
        return serve(how == "keep", work, args.pictures, args.threads)
    child = [sys.executable, __file__, "--pictures", str(args.pictures), "--threads", str(args.threads), "--serve"]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    sides = {
        (how, work): subprocess.Popen(
            [*child, how, work], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for work in WORK
        for how in ("keep", "leave")
    }
    seconds: dict[tuple[str, str], list[float]] = {side: [] for side in sides}
    for _ in range(args.rounds + 1):
        for side, process in sides.items():
            process.stdin.write("once\n")
            process.stdin.flush()
            seconds[side].append(float(process.stdout.readline()))
    for process in sides.values():
        process.communicate()
    comparisons = [
        compare(
            f"default model, {args.pictures} pictures, {work}, freed memory kept",
            seconds["keep", work][1:],
            "the system's allocator as it is",
            seconds["leave", work][1:],
        )
        for work in WORK
    ]
    finish("allocator", comparisons, args.out, threads=args.threads)


if __name__ == "__main__":
    main()
