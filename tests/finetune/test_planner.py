"""What is chosen where a person leaves it open."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from owngpt.config.finetuning import FinetuneConfig, Method
from owngpt.errors import UsageError
from owngpt.finetune.adapter.low_rank import typical_row_length
from owngpt.finetune.plan import FinetunePlan, Shape
from owngpt.finetune.planner import (
    PATIENCE,
    REPLAY,
    Facts,
    context_limit,
    make_plan,
    make_recipe,
    most_examples,
    optimizer_settings,
    replay_share,
    shape_of,
)
from owngpt.model.config import GPTConfig

SMALL = GPTConfig(
    vocab_size=49_152, context_length=8192, hidden_size=576, layers=30, heads=9, key_value_heads=3, head_size=64,
    intermediate_size=1536, tie_embeddings=True,
)  # fmt: skip
LARGE = replace(SMALL, hidden_size=2048, layers=24, heads=32, key_value_heads=32, intermediate_size=8192)
FAQ = Facts(examples=200, tokens=12_000, longest=120, held_out=20)


def planned(
    settings: FinetuneConfig, facts: Facts = FAQ, *, method: Method = "sft", seconds: float | None = None, speed: float = math.nan
) -> FinetunePlan:
    recipe = make_recipe(settings, SMALL, method, dtype="bfloat16", row_length=4.6)

    def steps_per_epoch(shape: Shape) -> float:
        rows = facts.tokens / shape.context_length if method == "sft" and shape.pack else facts.examples
        return rows / shape.batch_size / shape.accumulation

    return make_plan(
        settings, SMALL, recipe, facts, trained_parameters=1000, seconds=seconds, tokens_per_second=speed,
        steps_per_epoch=steps_per_epoch,
    )  # fmt: skip


def rate(model: GPTConfig, row_length: float | None, method: Method = "sft", **options: float) -> float:
    return optimizer_settings(FinetuneConfig(**options), model, method, row_length).matrix_rate


def test_an_adapter_learns_several_times_as_fast_and_a_larger_model_slower():
    assert rate(SMALL, 1.0) == pytest.approx(24 * rate(SMALL, None))
    assert rate(SMALL, None) == pytest.approx(5e-5, rel=0.05)
    assert 1e-4 < rate(LARGE, 1.0) < 0.5 * rate(SMALL, 1.0)
    assert rate(SMALL, 4.6, "dpo") < 0.2 * rate(SMALL, 1.0) and rate(SMALL, 4.6, "classify") < 0.5 * rate(SMALL, 1.0)


def test_answers_are_learned_faster_by_larger_weights_within_what_is_known():
    assert rate(SMALL, 4.6) == pytest.approx(2.0e-3, rel=0.02)
    assert rate(SMALL, 8.0) == pytest.approx(2 * rate(SMALL, 1.0))
    assert rate(SMALL, 1e-9) == pytest.approx(rate(SMALL, 0.5)) and rate(SMALL, 1e9) == pytest.approx(rate(SMALL, 8.0))
    assert rate(SMALL, 8.0, "dpo") == rate(SMALL, 1.0, "dpo"), "measured for answers alone"


def test_the_typical_row_is_neither_one_of_zeros_nor_one_of_outliers():
    rows = torch.ones(6, 4)
    rows[0], rows[1] = 0.0, 1e6
    assert typical_row_length([rows[:3], rows[3:]]) == 2.0


def test_an_adapter_with_a_larger_scale_learns_as_fast_by_a_smaller_rate():
    usual, strong, weak = (rate(SMALL, 4.6, alpha=alpha) for alpha in (32.0, 64.0, 16.0))
    assert strong == pytest.approx(usual / 2) and weak == usual


def test_given_numbers_are_taken():
    settings = FinetuneConfig(learning_rate=3e-3, batch_size=3, accumulation=2, context_length=160, steps=7, patience=2, rank=4)
    plan = planned(settings)
    assert plan.course.learning_rate == plan.recipe.optimizer.matrix_rate == 3e-3
    assert (plan.shape.batch_size, plan.shape.accumulation, plan.shape.context_length) == (3, 2, 160)
    assert (plan.course.steps, plan.course.budget_seconds, plan.course.patience) == (7, None, 2)
    assert plan.recipe.lora is not None and (plan.recipe.lora.rank, plan.recipe.lora.alpha) == (4, 8.0)
    assert planned(FinetuneConfig(epochs=2, batch_size=1, context_length=120)).course.steps == 200


def test_few_examples_are_not_learned_by_heart_however_long_the_time():
    plan = planned(FinetuneConfig(minutes=60), seconds=3600.0, speed=1000.0)
    assert plan.course.step_limit == plan.course.steps
    assert plan.epochs <= 11
    many = replace(FAQ, examples=200_000, tokens=12_000_000)
    short = planned(FinetuneConfig(minutes=60), many, seconds=3600.0, speed=1000.0)
    assert short.course.steps < (short.course.step_limit or 0)
    assert short.epochs < 1
    assert short.course.steps * 4096 == pytest.approx(3_600_000, rel=0.1)


def test_a_short_run_takes_small_steps_and_still_many_of_them():
    short = planned(FinetuneConfig(minutes=1), seconds=60.0, speed=400.0)
    whole = planned(FinetuneConfig(minutes=1, lora=False), seconds=60.0, speed=400.0)
    long = planned(FinetuneConfig(minutes=60), replace(FAQ, examples=20_000, tokens=1_200_000), seconds=3600.0, speed=400.0)
    rows = [plan.shape.batch_size * plan.shape.accumulation * plan.shape.context_length for plan in (short, whole, long)]
    assert rows[0] == 256, "few examples are learned in small steps"
    assert rows[1] == 400, "a sixtieth of what it has time for"
    assert rows[2] == 4096
    assert short.course.steps >= 30


def test_a_run_whose_steps_were_named_is_not_ended_early_and_others_are():
    assert planned(FinetuneConfig(steps=50)).course.patience is None
    assert planned(FinetuneConfig(epochs=3)).course.patience == PATIENCE
    assert planned(FinetuneConfig(epochs=3), replace(FAQ, held_out=0)).course.patience is None


@pytest.mark.parametrize(("method", "most"), [("dpo", 16), ("orpo", 16), ("classify", 32)])
def test_pairs_and_texts_are_counted_one_by_one(method: Method, most: int):
    facts = replace(FAQ, examples=5000, tokens=400_000)
    shape = shape_of(FinetuneConfig(), SMALL, method, facts, math.inf)
    assert shape.batch_size * shape.accumulation == pytest.approx(most, abs=1)
    few = shape_of(FinetuneConfig(), SMALL, method, replace(FAQ, examples=24), math.inf)
    assert few.batch_size * few.accumulation == 2


def test_a_pass_holds_as_much_as_memory_allows_whatever_the_model():
    facts = replace(FAQ, examples=20_000, tokens=4_000_000, longest=2000)
    small, large = (shape_of(FinetuneConfig(), model, "sft", facts, math.inf) for model in (SMALL, LARGE))
    assert small.context_length == large.context_length == 2000
    assert (large.batch_size, large.accumulation) == (1, 2)
    short = shape_of(FinetuneConfig(), SMALL, "sft", replace(facts, longest=500), math.inf)
    assert (short.context_length, short.batch_size, short.accumulation) == (512, 2, 4)
    assert small.batch_size * small.accumulation == large.batch_size * large.accumulation


def test_a_context_beyond_the_models_is_refused():
    with pytest.raises(UsageError, match="9000 is longer than the model's 8192; use --context-length 8192"):
        context_limit(FinetuneConfig(context_length=9000), SMALL)


def test_general_text_lengthens_a_pass():
    plain, mixed = (planned(FinetuneConfig(epochs=4, replay=share, batch_size=1)) for share in (0.0, 0.2))
    assert mixed.course.steps == pytest.approx(plain.course.steps / 0.8, abs=1)
    assert mixed.epochs == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize(
    ("method", "options", "share"),
    [
        ("sft", {}, REPLAY), ("sft", {"minutes": 3.0}, REPLAY), ("sft", {"steps": 9}, 0.0), ("sft", {"epochs": 2.0}, 0.0),
        ("sft", {"steps": 9, "replay_from": "books"}, REPLAY), ("sft", {"replay": 0.0}, 0.0), ("sft", {"replay": 0.3}, 0.3),
        ("sft", {"label_words": True}, 0.0), ("dpo", {}, 0.0), ("classify", {}, 0.0),
    ],
)  # fmt: skip
def test_general_text_is_mixed_in_where_answers_are_learned_in_a_given_time(method: Method, options: dict, share: float):
    settings = FinetuneConfig(**options)
    assert replay_share(settings, method) == share
    assert planned(settings, method=method, seconds=None if "steps" in options else 100.0, speed=900.0).replay == share


def test_no_more_examples_are_prepared_than_time_could_ever_use():
    assert most_examples(SMALL, None) is None
    assert 3_000 < (most_examples(SMALL, 300.0) or 0) < 30_000
    assert most_examples(LARGE, 10.0) == 500


def test_a_plan_survives_a_file():
    plan = planned(FinetuneConfig(minutes=3, dora=True, target_modules="q_proj,v_proj"), seconds=100.0, speed=300.0)
    assert FinetunePlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
