"""Independent pieces of work on a CPU: a thread each, instead of all threads on each operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def spread(work: Callable[[Piece], Result], pieces: Sequence[Piece]) -> list[Result]:
    """`work` on each piece, in order, by as many threads as torch has; within a piece its operations have one.

    Small operations gain most: they do not wait for a second thread to wake up.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(pieces) < 2:
        return [work(piece) for piece in pieces]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, pieces))
    finally:
        torch.set_num_threads(threads)  # a pool's thread sets its own number, and that of threads to come
