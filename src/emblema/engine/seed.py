"""Randomness as a function of where it is used: (seed, "step", 17) always names the same stream.

Nothing is drawn from a stream that somebody else advances. So a step can be repeated, skipped or resumed without
replaying those before it, and the global random state of the caller is never touched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

Place = str | int


def number(seed: int, *place: Place) -> int:
    """A 63-bit number for a place; close seeds and close places give unrelated numbers."""
    digest = hashlib.blake2b(repr((int(seed), *place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, *place: Place, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh generator for a place, e.g. `generator(seed, "epoch", 3)`."""
    return torch.Generator(device).manual_seed(number(seed, *place))


@contextmanager
def forked(seed: int, *place: Place) -> Iterator[None]:
    """Within, the global torch generators are those of the place; afterwards they are the caller's again."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    own = number(seed, *place)
    with torch.random.fork_rng(devices=devices):
        # not torch.manual_seed: until CUDA starts it remembers every call with its stack, and a run calls at each step
        torch.default_generator.manual_seed(own)
        if devices:
            torch.cuda.manual_seed_all(own)
        yield
