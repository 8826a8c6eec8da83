"""The heap during a sweep: kept within a block, given back between blocks; under `--offload` free of large tensors.

Of glibc's allocator two habits cost. It takes every large tensor fresh from the system and returns it at once, so that a
forward pass spends up to a tenth of its time on page faults. And it keeps what a block's temporaries leave between
longer-lived tensors; over the blocks of a model these holes add up to several times what any one block needs. Their pages can
be given back, their addresses cannot: under a limit on addresses the heap must not get such holes in the first place.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)
LARGEST = 32 << 20  # bytes; the highest threshold there is, and where the allocator's own adaptation ends
KEPT = 512 << 20  # bytes of free heap that may stay until a block is done
SMALL = 128 << 10  # bytes; what the threshold is in a new process, before the allocator adapts it


@contextmanager
def kept_heap() -> Iterator[None]:
    """Inside, freed memory is used again instead of going back and forth. Where the allocator cannot be told: nothing."""
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(MMAP_THRESHOLD, LARGEST)
    libc.mallopt(TRIM_THRESHOLD, KEPT)
    try:
        yield
    finally:
        libc.mallopt(TRIM_THRESHOLD, 2 * LARGEST)
        libc.malloc_trim(0)


@contextmanager
def parted_heap() -> Iterator[None]:
    """Inside, every large tensor has pages of its own and its addresses go when it goes; slower. Else: nothing.

    Not to be used around `kept_heap`, which wants the opposite.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(MMAP_THRESHOLD, SMALL)
    try:
        yield
    finally:
        libc.mallopt(MMAP_THRESHOLD, LARGEST)


def give_back() -> None:
    """Return free memory of the heap to the system, where the allocator can be asked to (milliseconds)."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> Any | None:
    try:
        libc = ctypes.CDLL(None)
        return libc if libc.malloc_trim and libc.mallopt else None
    except (OSError, AttributeError, TypeError):  # another C library, or none to ask
        return None
