"""Memory for what a training step makes and drops again by the hundred, in the same few sizes every time.

PyTorch asks the C library for aligned memory, and glibc cannot give a block that was freed to the next who asks for as much: it
looks for one that is larger by the alignment, since it does not know yet where in it the aligned part will lie. Between results
that are kept for the backward pass this leaves holes, as large as all that is kept (benchmarks/NOTES.md). Here a block that was
given back is taken again by the next of its size.
"""

from __future__ import annotations

import itertools
import math
import threading
import weakref
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from owngpt.kernels.memory import LINE, give_back_freed_memory, private_pages

SMALLEST = 64 * 1024
"""Bytes; what is smaller PyTorch gets as ever."""
SLACK = 1.25
"""Times the bytes that were ever lent at once: held up to there, free blocks of other sizes are kept beside new ones."""
LARGER = 2.0
"""Times what was asked for that a block may have, rather than that others are given up for a new one."""
PAGE = 4096


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """A contiguous tensor whose values are anything; on the CPU its memory returns to the pool with its last view."""
    count = math.prod(shape)
    if count * dtype.itemsize < SMALLEST or (device is not None and device.type != "cpu"):
        return torch.empty(shape, dtype=dtype, device=device)
    flat = torch.frombuffer(_POOL.take(count * dtype.itemsize), dtype=dtype, count=count)
    return flat.resize_(shape)  # unlike a view it has no base, which autograd would keep an eye on


def empty_like(tensor: Tensor) -> Tensor:
    """The same of a tensor's shape and type, where it is."""
    return empty(tensor.shape, tensor.dtype, tensor.device)


def release() -> None:
    """Give what is free back to the system, the C library's share with it: after training, for whatever comes next."""
    _POOL.release()
    give_back_freed_memory()


class Pool:
    """Blocks of memory, lent and taken back; what is free is bounded by what was ever lent at once."""

    def __init__(self) -> None:
        self._free: dict[int, list[_Block]] = {}
        """By size, the one that was missing last at the end."""
        self._returned: deque[_Block] = deque()
        """Not yet among the free: blocks return when the last tensor over them goes, in any thread, even while one is taken."""
        self._blocks: set[_Block] = set()
        self._lock = threading.Lock()
        self._lent = 0
        self.held = self.most_lent = 0
        """Bytes that the system gave, and that were lent at once at most."""

    @property
    def lent(self) -> int:
        """Bytes in use, in whole size classes."""
        with self._lock:
            self._sort_in()
            return self._lent

    def take(self, count: int) -> memoryview:
        """Memory of at least ``count`` bytes from a cache line on; it is lent until nobody refers to this any more."""
        size = size_class(count)
        with self._lock:
            if self._returned:
                self._sort_in()
            free = self._free.get(size)
            block = free.pop() if free else self._other(size)
            self._lent += size
            if self._lent > self.most_lent:
                self.most_lent = self._lent
        return block.lend(size, self._returned)

    def release(self) -> None:
        """Give up every block that nobody has, and the others when they come back."""
        with self._lock:
            self._sort_in()
            for block in itertools.chain.from_iterable(self._free.values()):
                self._drop(block)
            self._free.clear()
            for block in self._blocks:
                block.last_loan = True
            self.most_lent = self._lent

    def _sort_in(self) -> None:
        while self._returned:
            block = self._returned.popleft()
            self._lent -= block.asked
            if block.last_loan:
                self._drop(block)
            else:
                self._free.setdefault(block.size, []).append(block)

    def _other(self, size: int) -> _Block:
        """A new block, unless that were too many and there is a free one that is not much larger."""
        self._free[size] = self._free.pop(size, [])
        limit = SLACK * max(self.most_lent, self._lent + size)
        if self.held + size > limit:
            larger = [each for each, free in self._free.items() if free and size < each <= LARGER * size]
            if larger:
                return self._free[min(larger)].pop()
        for free in self._free.values():
            while free and self.held + size > limit:
                self._drop(free.pop())
        block = _Block(size, len(self._blocks))
        self._blocks.add(block)
        self.held += size
        return block

    def _drop(self, block: _Block) -> None:
        self._blocks.remove(block)
        self.held -= block.size


class _Block:
    """Bytes of the system's, and who has them."""

    def __init__(self, size: int, number: int) -> None:
        self.size, self.asked, self.last_loan = size, 0, False
        # Of neighbouring blocks, the same lines of a page would fall into the same few sets of the first-level cache.
        begin = number * 7 * LINE % PAGE
        try:
            pages = private_pages(size + PAGE)
        except OSError as error:
            wanted = f"{size / 1e6:,.0f} MB more for a step's results"
            raise MemoryError(f"the system does not have {wanted}; take fewer or shorter rows") from error
        self._whole = memoryview(pages)[begin : begin + size]
        self._loan: weakref.ref[memoryview] | None = None

    def lend(self, count: int, returned: deque[_Block]) -> memoryview:
        """The first bytes; when nobody refers to them any more the block is appended to ``returned``."""
        self.asked = count
        view = self._whole[:count]
        self._loan = weakref.ref(view, lambda _: returned.append(self))
        return view


def size_class(count: int) -> int:
    """Bytes of the block for ``count`` of them: at most an eighth more, so that lengths which differ a little share blocks."""
    step = 1 << max(0, count.bit_length() - 4)
    return -(-count // step) * step


_POOL = Pool()
"""Of the process."""
