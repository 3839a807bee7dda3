"""Attention over blocks is attention over the text, for any mixture of prompts and single tokens."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from owngpt.engine.paged import BLOCK, PagedContext, PagedMemory, Segment
from owngpt.kernels.tape import BufferPool, Tape, can_record
from owngpt.model.config import GPTConfig

pytestmark = pytest.mark.skipif(not can_record(), reason="no matrix tiles on this machine")

SCALE = 0.2


def config_of(heads: int, groups: int, size: int) -> GPTConfig:
    return GPTConfig(
        vocab_size=16, context_length=256, hidden_size=32, layers=1, heads=heads, key_value_heads=groups, head_size=size,
        intermediate_size=32,
    )  # fmt: skip


def reference(query: Tensor, keys: Tensor, values: Tensor, before: int, window: int, sinks: Tensor | None) -> Tensor:
    """query (N, H, D) at positions from ``before`` on; keys, values (before + N, G, D), all float32."""
    count, heads, _ = query.shape
    repeat = heads // keys.shape[1]
    keys, values = keys.repeat_interleave(repeat, 1), values.repeat_interleave(repeat, 1)
    scores = torch.einsum("nhd,shd->hns", query, keys) * SCALE
    distance = torch.arange(before, before + count)[:, None] - torch.arange(len(keys))
    hidden = (distance < 0) | (distance >= window if window else torch.zeros_like(distance, dtype=torch.bool))
    scores = scores.masked_fill(hidden, -math.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks[:, None, None].expand(heads, count, 1)), dim=-1)
    return torch.einsum("hns,shd->nhd", scores.softmax(-1)[..., : len(keys)], values)


class Sequences:
    """Texts of random keys and values that grow in one paged memory."""

    def __init__(self, config: GPTConfig, count: int) -> None:
        self.config, self.generator = config, torch.Generator().manual_seed(count)
        self.memory, self.pool = PagedMemory(config, 1 + 8 * count), BufferPool()
        groups, size = config.key_value_heads, config.head_size
        self.keys = [torch.empty(0, groups, size) for _ in range(count)]
        self.values = [torch.empty(0, groups, size) for _ in range(count)]
        order = torch.randperm(8 * count, generator=self.generator) + 1  # blocks lie anywhere
        self.blocks = [order[8 * index : 8 * index + 8].tolist() for index in range(count)]

    def draw(self, tokens: int, heads: int) -> Tensor:
        return torch.randn(1, tokens, heads, self.config.head_size, generator=self.generator).bfloat16()

    def step(self, counts: list[int], window: int, sinks: Tensor | None) -> float:
        """Let each text grow by so many tokens. :returns: the largest error."""
        total, config = sum(counts), self.config
        query, key, value = (self.draw(total, heads) for heads in (config.heads, config.key_value_heads, config.key_value_heads))
        befores = [len(keys) for keys in self.keys]
        alive = [index for index, count in enumerate(counts) if count]
        segments = [
            Segment(befores[index], counts[index], self.blocks[index][: -(-(befores[index] + counts[index]) // BLOCK)])
            for index in alive
        ]
        if max(counts) > 1:  # what a call with a piece of a prompt is filled up with
            segments += [Segment(0, 0, ())] * 3
        context = PagedContext(config, self.memory, total, len(segments), 8)
        context.fill(segments)
        tape = Tape(self.pool)
        with tape.record():
            out = context.attend(0, query, key, value, window=window, scale=SCALE, sinks=sinks)
        tape.run()
        worst, row = 0.0, 0
        for index in alive:
            rows = slice(row, row + counts[index])
            self.keys[index] = torch.cat((self.keys[index], key[0, rows].float()))
            self.values[index] = torch.cat((self.values[index], value[0, rows].float()))
            found = out[0, rows].float().view(counts[index], config.heads, config.head_size)
            expected = reference(query[0, rows].float(), self.keys[index], self.values[index], befores[index], window, sinks)
            worst = max(worst, float((found - expected).abs().max()))
            row += counts[index]
        return worst


@pytest.mark.parametrize("size", [32, 64, 96, 128, 256])
@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (3, 1), (4, 2), (9, 3), (5, 5), (14, 2)])
def test_blocks_give_what_the_text_gives(size: int, heads: int, groups: int) -> None:
    sequences = Sequences(config_of(heads, groups, size), 4)
    for counts in ([50, 1, 33, 7], [1, 1, 1, 1], [1, 40, 0, 1], [1, 1, 1, 1], [64, 1, 32, 100]):
        assert sequences.step(counts, 0, None) < 0.03


@pytest.mark.parametrize("window", [1, 5, 32, 33, 100])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_windows_and_sinks_count_as_they_should(window: int, with_sinks: bool) -> None:
    sinks = torch.tensor([0.5, -2.0, 3.0, 0.0]) if with_sinks else None
    sequences = Sequences(config_of(4, 2, 64), 3)
    for counts in ([70, 1, 33], [1, 1, 1], [1, 40, 2], [90, 1, 1], [1, 1, 1]):
        assert sequences.step(counts, window, sinks) < 0.03


def test_a_block_that_was_forgotten_spoils_nobody() -> None:
    sequences = Sequences(config_of(2, 1, 32), 1)
    block = sequences.blocks[0][0]
    sequences.memory.keys[:, block] = math.nan
    sequences.memory.values[:, block] = math.nan
    sequences.memory.forget(block)
    assert sequences.step([3], 0, None) < 0.03


def test_memory_that_nothing_was_written_to_is_not_taken() -> None:
    config = config_of(8, 8, 64)
    resident = _resident()
    memory = PagedMemory(config, 4000)
    assert memory.keys.numel() * 2 > 100 << 20
    assert _resident() - resident < 10 << 20


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
