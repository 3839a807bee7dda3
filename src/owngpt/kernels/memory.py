"""Memory where PyTorch's own way of getting it costs time.

Freed memory is kept instead of given back to the system and asked for again a millisecond later: a training step allocates and
frees the same few hundred megabytes, glibc returns blocks of more than 128 KB to the kernel at once, and the kernel then clears
every page again at its next use, which is a tenth of a small model's step (benchmarks/NOTES.md).
"""

from __future__ import annotations

import ctypes
import math
import mmap
import platform
from contextlib import suppress
from functools import cache

import torch
from torch import Tensor

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT = 32 * 1024 * 1024
"""Bytes of one block; mallopt(3) allows no more."""
MOST_KEPT = 1024 * 1024 * 1024
"""Free bytes at the end of the heap from which on some are given back."""
HUGE_PAGE = 2 * 1024 * 1024
REGION = 64 * 1024 * 1024
"""Bytes asked of the system at a time; what is never written to takes no memory."""
LINE = 64
"""Bytes of a line of the processor's caches."""


@cache
def keep_freed_memory() -> bool:
    """Tell the C library so, once for the process; False where it is not glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)) and bool(mallopt(M_TRIM_THRESHOLD, MOST_KEPT))


def give_back_freed_memory() -> None:
    """To the system, where the C library is glibc: between one kind of work and another that would not take it from there."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that take no memory until they are written to, page by page."""
    count = math.prod(shape)
    if not count:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(private_pages(count * dtype.itemsize), dtype=dtype, count=count).view(shape)


def private_pages(count: int) -> mmap.mmap:
    """``count`` bytes from the system: zeros that are not there until they are written to, and go with the last reference."""
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    return mmap.mmap(-1, count, **private)


class HugePages:
    """Memory in huge pages, where Linux grants them, for weights that every token reads from end to end.

    Small pages cost that a few percent: the processor looks up each, and fetches ahead only inside of one (benchmarks/NOTES.md).
    Memory returns to the system when the last tensor of its region is gone.
    """

    def __init__(self) -> None:
        self._region = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def take(self, count: int) -> Tensor:
        """``count`` bytes, uint8, not initialised, at the beginning of a cache line."""
        begin = -(-self._used // LINE) * LINE
        if begin + count > len(self._region):
            self._region, begin = _huge(max(REGION, -(-count // HUGE_PAGE) * HUGE_PAGE)), 0
        self._used = begin + count
        return self._region[begin : self._used]

    def keep(self, taken: Tensor, count: int) -> Tensor:
        """The first ``count`` bytes of what was taken last; the others are given back."""
        assert taken.data_ptr() + len(taken) == self._region.data_ptr() + self._used, "something else was taken since"
        self._used -= len(taken) - count
        return taken[:count]


def _huge(count: int) -> Tensor:
    """Bytes from the beginning of a huge page on; ordinary memory where there are none."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(count, dtype=torch.uint8)
    mapped = private_pages(count + HUGE_PAGE)
    with suppress(OSError):  # a kernel built without them
        mapped.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(mapped, dtype=torch.uint8)
    begin = -whole.data_ptr() % HUGE_PAGE
    return whole[begin : begin + count]
