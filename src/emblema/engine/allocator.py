"""What the process does with memory that was freed."""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed() -> bool:
    """Freed blocks stay with the process, as a cache. True if that could be arranged.

    glibc gives every block above 32 MB back to the system when it is freed, and activations are larger: each operator
    of each step then waits for fresh pages, filled with zeros, which can be half of its time. Blocks of up to 1 GiB
    come from the heap after this call, and up to 2 GiB stay at its end. It holds for the whole process, so programs
    call it (`emblema` does), libraries do not. Settings of the user's environment (MALLOC_..., GLIBC_TUNABLES) and
    other allocators are left alone.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, 1 << 30) and mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1))
