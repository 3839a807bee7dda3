"""The key-value cache in blocks of 32 tokens, and the attention context over it for many sequences in one call."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from owngpt.kernels import tape
from owngpt.kernels.memory import untouched_zeros
from owngpt.model.config import GPTConfig

BLOCK = 32
"""Tokens of a block; what source/paged.c is written for."""
QUERIES = 32


class Segment(NamedTuple):
    """One sequence's part of a call: ``tokens`` new ones after ``before`` ones that its blocks hold already."""

    before: int
    tokens: int
    blocks: Sequence[int]
    """Numbers of the blocks that hold tokens 0 … before + tokens - 1."""


def numbers_of(tensor: Tensor) -> memoryview:
    """A tensor's elements in their order, to be written through: for a few numbers neither torch nor numpy is as quick, and
    between two steps the caches hold weights, nothing of either."""
    return tensor.numpy().reshape(-1).data.cast("B").cast("i" if tensor.dtype == torch.int32 else "q")


class PagedMemory:
    """Keys and values of every layer: (layers, blocks, G, 32 * D) bfloat16 each, in the layout of source/paged.c."""

    def __init__(self, config: GPTConfig, blocks: int) -> None:
        shape = (config.layers, blocks, config.key_value_heads, BLOCK * config.head_size)
        self.keys = untouched_zeros(shape, torch.bfloat16)
        self.values = untouched_zeros(shape, torch.bfloat16)
        self.blocks = blocks

    def forget(self, block: int) -> None:
        """Zero a block: one that may hold not-a-number would spoil whoever gets it next."""
        self.keys[:, block] = 0
        self.values[:, block] = 0

    @staticmethod
    def bytes_per_block(config: GPTConfig) -> int:
        """Memory of one block in all layers."""
        return 2 * 2 * config.layers * config.key_value_heads * BLOCK * config.head_size


class PagedContext:
    """The attention context while a tape records: one row (B = 1) of the tokens of all segments, one after another.

    Buffers for positions, segments and block tables stay in place, so that a recorded call can be filled again.
    """

    def __init__(
        self,
        config: GPTConfig,
        memory: PagedMemory,
        tokens: int,
        segments: int,
        table: int,
        *,
        wanted: int | None = None,
        drop: bool = False,
    ) -> None:
        """
        :param tokens: N of every call.
        :param segments: sequences of every call.
        :param table: blocks a sequence has at most.
        :param wanted: W, tokens whose hidden states are read; None for all.
        :param drop: the last layer computes no others beyond their keys and values. Without, see :meth:`gathered`.
        """
        self._config, self._memory, self._table = config, memory, table
        self._positions = torch.zeros(1, tokens, dtype=torch.int32)
        self._segments = torch.zeros(segments, 4, dtype=torch.int32)
        self._tables = torch.zeros(segments * table, dtype=torch.int32)
        self._views = numbers_of(self._segments), numbers_of(self._positions), numbers_of(self._tables)
        self._dropping = config.layers - 1 if drop else None
        """The layer that tokens are dropped in."""
        self._wanted = torch.zeros(wanted or 0, dtype=torch.int32)
        self._wanted_view = numbers_of(self._wanted)

    def fill(self, segments: Sequence[Segment], wanted: Sequence[int] = ()) -> None:
        """Say what the next run of the tape is about.

        :param wanted: numbers of the tokens whose hidden states are read; in places that remain are those of an earlier call.
        """
        row = 0
        records, positions, tables = self._views
        for index, (before, tokens, blocks) in enumerate(segments):
            place = index * self._table
            records[4 * index : 4 * index + 4] = array("i", (row, tokens, before, place))
            positions[row : row + tokens] = array("i", range(before, before + tokens))
            tables[place : place + len(blocks)] = array("i", blocks)
            row += tokens
        if len(self._wanted):
            assert len(wanted) <= len(self._wanted)
            self._wanted_view[: len(wanted)] = array("i", wanted)

    def positions(self, time: int) -> Tensor:
        """(1, N) int32"""
        assert time == self._positions.shape[1]
        return self._positions

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, window: int, scale: float, sinks: Tensor | None = None
    ) -> Tensor:
        """Append key and value (1, N, G, D), then attend with query (1, N, H, D) → (1, N, H*D), or (1, W, H*D)."""
        active = tape.recording()
        assert active is not None
        tokens, heads, size = query.shape[1:]
        groups = key.shape[2]
        keys, values = self._memory.keys[layer], self._memory.values[layer]
        common = (self._segments, self._segments.shape[0], self._tables, keys, values, groups, size)
        active.step("append", *common, key, key.stride(1), value, value.stride(1))
        out = active.empty(1, tokens, heads * size)
        single = tokens == self._segments.shape[0]
        scratch = (4 if single else QUERIES) * (self._table + 1) * BLOCK * 6  # the rows keep a line's distance
        workspace = active.empty(active.threads * scratch, dtype=torch.uint8)
        active.step(
            "attend", *common, query, query.stride(1), out, heads, window, float(scale), sinks, scratch, workspace,
        )  # fmt: skip
        return self.going_on(layer, out)  # not before: a token's sums are the same whichever others are wanted

    def going_on(self, layer: int, x: Tensor) -> Tensor:
        """(1, N, C) → (1, W, C) in the layer that drops tokens"""
        return self.gathered(x) if layer == self._dropping else x

    def gathered(self, x: Tensor) -> Tensor:
        """(1, N, C) → (1, W, C): the wanted tokens"""
        active = tape.recording()
        assert active is not None
        out = active.empty(1, len(self._wanted), x.shape[-1])
        active.step("gather", x, x.shape[-1], self._wanted, len(self._wanted), out)
        return out
