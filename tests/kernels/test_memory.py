"""Memory in huge pages: what is taken does not overlap, and goes when nobody has it any more."""

from __future__ import annotations

import gc

import pytest
import torch

from owngpt.kernels.memory import HUGE_PAGE, LINE, REGION, HugePages


def test_what_is_taken_is_apart_and_at_the_beginning_of_a_cache_line():
    memory = HugePages()
    taken = [memory.take(count) for count in (1, 100, 4096, 0, 65)]
    for number, block in enumerate(taken):
        block.fill_(number)
        assert block.dtype == torch.uint8 and block.data_ptr() % LINE == 0
    assert [len(block) for block in taken] == [1, 100, 4096, 0, 65]
    assert all(bool((block == number).all()) for number, block in enumerate(taken))


def test_more_than_a_region_gets_one_of_its_own():
    block = HugePages().take(REGION + 1)
    assert len(block) == REGION + 1 and block.data_ptr() % HUGE_PAGE == 0
    block[0], block[-1] = 1, 2
    assert block[0] == 1 and block[-1] == 2


def test_memory_that_nobody_has_returns_to_the_system():
    psutil = pytest.importorskip("psutil")
    process, count = psutil.Process(), 3 * REGION
    block = HugePages().take(count).fill_(1)
    held = process.memory_info().rss
    del block
    gc.collect()
    assert process.memory_info().rss < held - count // 2
