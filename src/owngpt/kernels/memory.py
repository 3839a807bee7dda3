"""Keep freed memory instead of giving it back to the system and asking again a millisecond later.

A training step allocates and frees the same few hundred megabytes. glibc returns blocks of more than 128 KB to the kernel at
once, which then clears every page again at its next use: a tenth of a small model's step (benchmarks/NOTES.md).
"""

from __future__ import annotations

import ctypes
import math
import mmap
import platform
from functools import cache

import torch
from torch import Tensor

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT = 32 * 1024 * 1024
"""Bytes of one block; mallopt(3) allows no more."""
MOST_KEPT = 1024 * 1024 * 1024
"""Free bytes at the end of the heap from which on some are given back."""


@cache
def keep_freed_memory() -> bool:
    """Tell the C library so, once for the process; False where it is not glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)) and bool(mallopt(M_TRIM_THRESHOLD, MOST_KEPT))


def untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that take no memory until they are written to, page by page."""
    count = math.prod(shape)
    if not count:
        return torch.zeros(shape, dtype=dtype)
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    return torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize, **private), dtype=dtype, count=count).view(shape)
