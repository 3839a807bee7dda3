"""All of a run fits into the time that was named."""

from __future__ import annotations

import time

import pytest

from owngpt.config.finetuning import FinetuneConfig
from owngpt.errors import UsageError
from owngpt.finetune.clock import LATER, MEASURE_SHARE, MOST_TIMES, SAVE_SECONDS, Clock, reference_seconds
from owngpt.finetune.planner import Facts, make_recipe
from owngpt.model.config import GPTConfig

TINY = GPTConfig(
    vocab_size=64, context_length=64, hidden_size=32, layers=1, heads=2, key_value_heads=2, head_size=16, intermediate_size=64
)
PAIRS = Facts(examples=1000, tokens=100_000, longest=60, held_out=50)


def test_learning_measuring_and_saving_make_up_the_time():
    clock = Clock(time.monotonic() - 30, 300.0)
    learning = clock.learning(20.0)
    assert learning == pytest.approx(270 - SAVE_SECONDS - LATER * 20, abs=0.1)
    assert clock.measuring_again(20.0) == pytest.approx(MOST_TIMES * LATER * 20), "a run that ended early has time to look"
    late = Clock(time.monotonic() - 295, 300.0)
    assert late.measuring_again(20.0) == pytest.approx(5 - SAVE_SECONDS / 2, abs=0.1), "what is left is not overdrawn"


def test_a_measurement_shrinks_when_reading_took_long_and_one_that_was_slow_is_not_expected_again():
    assert Clock(time.monotonic(), 300.0).measuring == pytest.approx(MEASURE_SHARE * 300, abs=0.1)
    assert Clock(time.monotonic() - 250, 300.0).measuring == pytest.approx(5.0, abs=0.1)
    assert Clock(time.monotonic(), 300.0).learning(500.0) > 200


def test_without_a_time_nothing_is_limited():
    clock = Clock(time.monotonic(), None)
    assert (clock.measuring, clock.measuring_again(9.0), clock.replaying) == (None, None, None)


def test_too_little_time_names_enough():
    clock = Clock(time.monotonic() - 50, 60.0)
    with pytest.raises(UsageError, match=r"0 s of 60 are left to train in; give at least --minutes 1\.\d"):
        clock.check(clock.learning(10.0))


def test_the_base_is_asked_before_where_that_is_cheap_and_an_adapter_is_switched_off_where_not():
    adapter, whole = (
        make_recipe(FinetuneConfig(lora=lora), TINY, "dpo", dtype="float32", row_length=1.0) for lora in (True, False)
    )
    assert reference_seconds(adapter, PAIRS, speed=1000.0, learning=600.0) == pytest.approx(40.0)
    assert reference_seconds(adapter, PAIRS, speed=10.0, learning=600.0) == 0.0
    with pytest.raises(UsageError, match="66.7 minutes to find out for 1,000 pairs.*use --lora or --method orpo"):
        reference_seconds(whole, PAIRS, speed=10.0, learning=600.0)
