"""Sequences packed into a row compute what each computes alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.model.test_reference import CONFIGS, NATIVE

from owngpt.errors import UsageError
from owngpt.model.attention import CausalContext, PackedContext
from owngpt.model.gpt import GPT
from owngpt.model.rotary import RotaryScaling

DYNAMIC = replace(
    NATIVE, context_length=64, rotary_scaling=RotaryScaling("dynamic", factor=2.0, original_context_length=6), rotary_base=100.0
)
LENGTHS = [[3, 11, 2], [9, 7]]
"""Of the sequences in each row; dynamic scaling turns those of more than 6 tokens by their own length."""


def packed_rows() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(23, (2, 16), generator=torch.Generator().manual_seed(1))
    starts = [[start for start, length in zip(firsts(row), row, strict=True) for _ in range(length)] for row in LENGTHS]
    return tokens, torch.tensor(starts, dtype=torch.int32)


def firsts(row: list[int]) -> list[int]:
    return [sum(row[:index]) for index in range(len(row))]


@pytest.mark.parametrize("name", ["native", "gpt2", "gpt3", "windows", "gemma 3", "gpt-oss", "gpt-j", "dynamic"])
def test_each_sequence_computes_what_it_computes_alone(name: str) -> None:
    model = GPT(DYNAMIC if name == "dynamic" else CONFIGS[name], generator=torch.Generator().manual_seed(2)).eval()
    tokens, starts = packed_rows()
    together = model(tokens, PackedContext(starts))
    for row, lengths in enumerate(LENGTHS):
        for start, length in zip(firsts(lengths), lengths, strict=True):
            alone = model(tokens[row : row + 1, start : start + length], CausalContext())
            torch.testing.assert_close(together[row : row + 1, start : start + length], alone, rtol=1e-5, atol=1e-5)


def test_sequences_under_dynamic_scaling_are_turned_by_different_tables() -> None:
    model = GPT(DYNAMIC, generator=torch.Generator().manual_seed(2)).eval()
    tokens, starts = packed_rows()
    going_on = model(tokens, CausalContext(starts))
    assert not torch.allclose(going_on, model(tokens, PackedContext(starts)), atol=1e-3)


def test_a_row_may_be_longer_than_the_context_but_no_sequence() -> None:
    model = GPT(CONFIGS["gpt2"], generator=torch.Generator().manual_seed(2)).eval()
    assert model.config.context_length == 12
    tokens, starts = packed_rows()
    assert model(tokens, PackedContext(starts)).shape == (2, 16, 16)
    with pytest.raises(UsageError, match="position 15 lies beyond"):
        model(tokens, PackedContext(torch.zeros_like(starts)))


def test_lengths_are_those_of_each_tokens_sequence() -> None:
    _, starts = packed_rows()
    expected = [[length for length in row for _ in range(length)] for row in LENGTHS]
    assert PackedContext(starts).lengths().tolist() == expected
