"""Sizes fit the model, prompts are new, and gaps are those that a reader would have seen."""

from __future__ import annotations

import pytest

from owngpt.bench.side import gaps, split_gaps
from owngpt.bench.workload import QUICK, Prompts, Sizes
from owngpt.errors import UsageError


@pytest.mark.parametrize("context_length", [32, 64, 100, 512, 1024, 2048, 8192])
@pytest.mark.parametrize("sizes", [Sizes(), QUICK])
def test_every_text_fits_the_context_and_the_cache(sizes, context_length):
    fitted = sizes.fitted(context_length)
    assert fitted.longest <= context_length
    assert fitted.prefill >= 1
    assert fitted.prefix >= 1
    assert fitted.prefix + fitted.prefix_tail < context_length
    assert all(load.prompt >= 1 and load.new >= 1 for load in (*fitted.loads, fitted.resident))
    assert fitted.memory >= max(load.requests * (load.prompt + load.new) for load in fitted.loads)


def test_a_long_context_keeps_the_sizes_of_the_table():
    assert Sizes().fitted(8192) == Sizes()
    assert Sizes().resident.prompt + Sizes().resident.new == 1024


def test_a_context_too_short_to_measure_in_is_refused():
    with pytest.raises(UsageError, match="16 tokens; measuring needs 32"):
        Sizes().fitted(16)


def test_prompts_repeat_with_the_seed_only_and_stay_within_the_vocabulary():
    prompts = Prompts(1000, seed=1).several(20, 50)
    assert prompts == Prompts(1000, seed=1).several(20, 50)
    assert len({tuple(prompt) for prompt in prompts}) == 20
    assert all(100 <= token_id < 900 for prompt in prompts for token_id in prompt)


def test_gaps_before_and_during_an_arrival_are_told_apart():
    times = [[0.0, 1.0, 2.0, 5.0, 6.0], [0.5, 1.5, 2.5, 4.5, 9.0]]
    before, during = split_gaps(times, start=2.2, end=4.0)
    assert sorted(before) == [1.0, 1.0, 1.0]
    assert sorted(during) == [1.0, 2.0, 3.0]  # 2.0 → 5.0 and 2.5 → 4.5 were waited through; 1.5 → 2.5 ended after the start


def test_the_worst_gap_shows_in_the_99th_percentile():
    figures = gaps([0.01] * 50, [0.01] * 60 + [0.5], first_token=0.7)
    assert figures["median"] == 0.01
    assert figures["p99"] == 0.5
    assert figures["first_token"] == 0.7
