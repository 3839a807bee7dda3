"""Who holds which block of the key-value cache, and which blocks hold a text that may come again.

A block of 32 tokens whose content is computed can be found again by what leads up to it: the entry it continues, and its own
tokens. So a prompt that begins as an earlier one did, in another request or an earlier turn, is not computed twice
(automatic prefix caching). Blocks nobody holds keep their content until they are needed, the longest unused going first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

SPARE_BLOCK = 0
"""The runner's own; see :mod:`owngpt.engine.runner`."""


@dataclass(frozen=True)
class _Entry:
    """Content that can be found: 32 tokens after the entry ``parent``."""

    serial: int
    key: tuple[object, tuple[int, ...]]


class BlockPool:
    """Reference counts and the index of contents. Knows numbers of blocks, not their memory."""

    def __init__(self, blocks: int, block_size: int) -> None:
        """
        :param blocks: of the runner, the spare one included.
        :param block_size: tokens of a block.
        """
        assert blocks > 1
        self.block_size = block_size
        self.size = blocks - 1
        """Blocks that sequences can be given."""
        self._references = [0] * blocks
        self._empty = list(range(blocks - 1, SPARE_BLOCK, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # no reference, content findable; longest unused first
        self._entries: dict[int, _Entry] = {}  # block → what it holds
        self._found: dict[tuple[object, tuple[int, ...]], int] = {}  # key → block
        self._serials = count(1)

    @property
    def available(self) -> int:
        """Blocks that :meth:`allocate` can give now."""
        return len(self._empty) + len(self._idle)

    @property
    def cached(self) -> int:
        """Blocks without a holder whose content can still be found."""
        return len(self._idle)

    def match(self, token_ids: Sequence[int], root: object) -> tuple[list[int], list[int]]:
        """The blocks that hold the longest known beginning of a text, and their serials; each gets a reference.

        At least one token is left to compute, since only computing gives logits.

        :param root: what else the content depends on, such as an adapter.
        """
        blocks: list[int] = []
        serials: list[int] = []
        parent: object = ("root", root)
        for start in range(0, len(token_ids) - self.block_size, self.block_size):
            block = self._found.get((parent, tuple(token_ids[start : start + self.block_size])))
            if block is None:
                break
            parent = self._entries[block].serial
            blocks.append(block)
            serials.append(self._entries[block].serial)
        for block in blocks:
            self._hold(block)
        return blocks, serials

    def allocate(self) -> int | None:
        """A block of undefined content with one reference, or None when all are held."""
        if self._empty:
            block = self._empty.pop()
        elif self._idle:
            block, _ = self._idle.popitem(last=False)
            self._forget(block)
        else:
            return None
        self._references[block] = 1
        return block

    def record(self, block: int, parent: int | None, token_ids: Sequence[int], root: object) -> int:
        """Make a full, computed block findable. :returns: its serial, which is the parent of what follows.

        Where another block holds the same already, that one stays the one to be found.
        """
        key = (("root", root) if parent is None else parent, tuple(token_ids))
        assert len(token_ids) == self.block_size
        known = self._found.get(key)
        if known is not None:
            return self._entries[known].serial
        entry = _Entry(next(self._serials), key)
        self._entries[block], self._found[key] = entry, block
        return entry.serial

    def hold(self, block: int) -> None:
        """One more holder, for a sequence that splits."""
        assert self._references[block] > 0
        self._references[block] += 1

    def release(self, blocks: Sequence[int], *, forget: bool = False) -> None:
        """Give up one reference to each block of a sequence.

        :param forget: the content must not be found again.
        """
        for block in reversed(blocks):  # the end of a text is needed less than its beginning: it goes first
            assert self._references[block] > 0, f"block {block} has no holder"
            if forget:
                self._forget(block)
            self._references[block] -= 1
            if self._references[block]:
                continue
            if block in self._entries:
                self._idle[block] = None
            else:
                self._empty.append(block)

    def held(self, block: int) -> bool:
        """Whether anybody has a reference to a block."""
        return self._references[block] > 0

    def check(self, held: Sequence[Sequence[int]]) -> None:
        """Our own invariants, given every sequence's blocks: nothing is lost, nothing given twice."""
        expected = [0] * len(self._references)
        for blocks in held:
            for block in blocks:
                expected[block] += 1
        assert expected == self._references, "references do not match the holders"
        free = sorted([*self._empty, *self._idle])
        assert free == [b for b in range(1, len(expected)) if not expected[b]], "free blocks are not those without a holder"
        assert all(self._found[entry.key] == block for block, entry in self._entries.items())
        assert len(self._found) == len(self._entries)

    def _hold(self, block: int) -> None:
        self._idle.pop(block, None)
        self._references[block] += 1

    def _forget(self, block: int) -> None:
        entry = self._entries.pop(block, None)
        if entry is not None:
            del self._found[entry.key]
