"""Rows hold every sequence once, none is overfull, and little room is left."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from owngpt.finetune.sequences.packing import pack


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 50), max_size=80), st.integers(50, 70))
def test_every_sequence_lies_in_one_row_that_is_not_overfull(lengths: list[int], capacity: int) -> None:
    rows = pack(np.array(lengths, dtype=np.int64), capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(row and sum(lengths[index] for index in row) <= capacity for row in rows)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=80), st.randoms())
def test_how_many_rows_there_are_does_not_depend_on_the_order(lengths: list[int], random) -> None:
    shuffled = lengths.copy()
    random.shuffle(shuffled)
    assert len(pack(np.array(lengths), 50)) == len(pack(np.array(shuffled), 50))


def test_the_fullest_row_that_has_room_is_taken() -> None:
    assert pack(np.array([6, 5, 3, 4, 2]), 10) == [[0, 3], [1, 2, 4]]


def test_a_realistic_set_leaves_less_than_two_percent_empty() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(4.6, 0.6, 5000).astype(int), 8, 1024)
    rows = pack(lengths, 1024)
    assert lengths.sum() / (len(rows) * 1024) > 0.98


@pytest.mark.parametrize("lengths", [[], [7]])
def test_nothing_and_one_sequence(lengths: list[int]) -> None:
    assert pack(np.array(lengths, dtype=np.int64), 7) == ([[0]] if lengths else [])
