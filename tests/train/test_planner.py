"""The planner: what it chooses, what it refuses, and that it keeps to what was given."""

from __future__ import annotations

import pytest
import torch

from owngpt.config.training import TrainConfig
from owngpt.errors import UsageError
from owngpt.train.planner import Plan, TextFacts, make_plan, optimizer_kind, vocabulary_size
from owngpt.train.presets import PRESETS, native, preset
from owngpt.train.scaling import LAW

FACTS = TextFacts(byte_count=4_000_000, token_count=1_400_000, vocab_size=1024)


def plan(settings: TrainConfig, facts: TextFacts = FACTS, seconds: float | None = None) -> Plan:
    return make_plan(settings, facts, seconds=seconds, dtype=torch.float32, device=torch.device("cpu"))


def test_a_time_too_short_for_any_shape_gets_the_smallest() -> None:
    chosen = plan(TrainConfig(minutes=0.001), seconds=0.01)
    assert (chosen.model.hidden_size, chosen.model.layers) == (64, 2)


def test_given_sizes_are_kept() -> None:
    settings = TrainConfig(
        steps=7, layers=3, hidden_size=96, heads=2, context_length=32, batch_size=4, accumulation=2, dropout=0.1
    )
    chosen = plan(settings)
    model = chosen.model
    assert (model.layers, model.hidden_size, model.heads, model.head_size, model.context_length, model.dropout) == (
        3,
        96,
        2,
        48,
        32,
        0.1,
    )
    assert (chosen.batch_size, chosen.course.accumulation, chosen.course.steps) == (4, 2, 7)


def test_heads_that_divide_nothing_considered_still_make_a_shape() -> None:
    assert plan(TrainConfig(minutes=0.001, heads=5, context_length=64, batch_size=1), seconds=0.01).model.heads == 5


def test_heads_that_do_not_divide_the_width_are_refused_with_both_numbers() -> None:
    with pytest.raises(UsageError, match=r"100.*heads 3"):
        plan(TrainConfig(steps=1, hidden_size=100, heads=3))


def test_a_text_shorter_than_one_context_is_refused() -> None:
    with pytest.raises(UsageError, match="fewer than one context"):
        plan(TrainConfig(steps=1, context_length=512), TextFacts(900, 300, 256))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_follow_a_changed_depth(name: str) -> None:
    chosen = plan(TrainConfig(steps=1, preset=name, layers=3, hidden_size=128))
    assert (chosen.model.layers, chosen.model.hidden_size) == (3, 128)
    assert len(chosen.model.attention_windows) in (0, 3)


def test_a_plan_survives_being_written_and_read() -> None:
    chosen = plan(TrainConfig(steps=3, preset="gpt3-small", layers=2, hidden_size=64))
    assert Plan.from_dict(chosen.to_dict()).model == chosen.model


def test_muon_gives_way_where_it_would_cost_more_than_the_steps() -> None:
    assert optimizer_kind(TrainConfig(), native(2048, 256, 128, 4), sequences=16) == "muon"
    assert optimizer_kind(TrainConfig(), preset("gpt2"), sequences=2) == "adamw"
    assert optimizer_kind(TrainConfig(optimizer="muon"), preset("gpt2"), sequences=2) == "muon"


def test_more_text_and_more_time_want_more_tokens_in_the_vocabulary() -> None:
    small, large = vocabulary_size(TrainConfig(), 10**6, 60), vocabulary_size(TrainConfig(), 10**8, 3600)
    assert 512 <= small < large <= 32768
    assert vocabulary_size(TrainConfig(vocab_size=777), 10**6, 60) == 777


def test_reading_a_text_again_teaches_less_each_time() -> None:
    once, twice, often = (LAW.effective_bytes(n * 10**6, 10**6) for n in (1, 2, 50))
    assert once == 10**6
    assert once < twice < 2 * once
    assert often < (1 + LAW.repeat_half) * 10**6 + 1
