"""From a model, examples and a time to a run: learning rate, batch, how many steps, and when to stop.

The rules are those of the literature, scaled to small models: an adapter learns with several times the rate of the model
itself (arXiv 2106.09685, 2402.09353), larger models with smaller rates, preferences with a tenth of what answers take
(arXiv 2305.18290), and a set of examples is worth only a few passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from owngpt.config.finetuning import DEFAULT_MINUTES, PREFERENCE_METHODS, FinetuneConfig, Method
from owngpt.errors import UsageError
from owngpt.finetune.adapter.lora import LoraSettings
from owngpt.finetune.plan import FinetunePlan, Recipe, Shape
from owngpt.model.config import GPTConfig
from owngpt.train.course import Course
from owngpt.train.optimizer import OptimizerSettings

CONTEXT_LIMIT = 2048
"""Tokens of the longest example that is taken without being asked."""
PACKED_ROW = 512
"""Tokens of a row that short examples are packed into."""
ROUNDED_TO = 16
"""Rows have a multiple of it, which matrix units like."""
PASS_VALUES = 18_000_000
"""Tokens x width x layers of one forward pass: bounds the memory of activations."""
LEAST_STEP_TOKENS, MODEL_STEP_TOKENS, MOST_STEP_TOKENS = 256, 512, 4096
"""Of a step. While the examples are few, many small steps learn more of them than a few large ones: an adapter takes the least,
and a model that is trained whole, whose steps take time of their own, twice as many (benchmarks/NOTES.md)."""
MANY_TOKENS = 1_000_000
LEAST_STEPS = 60
"""That a run should have: a short one takes smaller steps."""
STEPS_A_PASS = 12
LOOKS = 12
"""Validations of a run with a fixed number of steps."""
AVERAGES_FROM = 0.4
"""Share of a run after which an adapter that learns answers is a mean of its states: the rate is high, and so is their noise."""
REPLAY = 0.1
"""Share of general text where nothing is said of it (benchmarks/NOTES.md)."""
VALIDATION_SHARE = 0.1
"""Of the time to learn in: of few held-out examples, a part would tell little of when to stop."""
PATIENCE = 4
FULL_RATE = 5e-5
"""Of a model of :data:`REFERENCE_PARAMETERS`, trained whole."""
LORA_FACTOR, ANSWERS_FACTOR = 7.0, 24.0
"""Times the rate of a whole model: of an adapter, and of one that learns answers (measured in runs of 80 to 400 steps of 256
tokens; in steps of twice as many it was 30)."""
ROW_POWER, ROW_LENGTHS = 1 / 3, (0.5, 8.0)
"""An adapter that learns answers does so the faster the longer the rows that it changes are, by this power: Adam's steps have one
size whatever the model, while a layer says as much more as its rows are longer (benchmarks/NOTES.md). And for which lengths."""
USUAL_SCALE = 2.0
"""What an adapter's update is multiplied by where these hold; it learns as much faster as that is more."""
REFERENCE_PARAMETERS = 135e6
RATE_LIMITS = (1e-5, 1e-3)
"""Of a whole model."""
METHOD_FACTORS: dict[Method, float] = {"sft": 1.0, "dpo": 0.1, "ipo": 0.1, "orpo": 0.4, "classify": 1.0}
PREFERENCES_A_STEP, TEXTS_A_STEP = 16, 32
UNITS: dict[Method, str] = {"sft": "rows", "classify": "texts"}
LEARNING_RATE_LIMIT = 3e11
"""Parameters x tokens a second: more than a machine without GPU reaches when it learns."""
SHORT_EXAMPLE = 60
"""Tokens."""
RENDERING_SECONDS, RENDERING_SHARE = 0.001, 0.1
"""An example, with two cores; and the share of a run that it may take."""
FEWEST_DRAWN = 500
PASSES = ((30, 10.0), (100, 4.0), (1_000, 2.5), (math.inf, 2.0))
"""Up to so many examples: passes after which more only memorises (benchmarks/NOTES.md)."""
PASSES_OF_OTHERS = 2.0
"""Times as many for preferences, classes and whole models, which learn with smaller rates."""


@dataclass(frozen=True)
class Facts:
    """What the planner must know of the examples and the machine."""

    examples: int
    """To learn from: sequences, or pairs of a preference."""
    tokens: int
    """Of all of them together."""
    longest: int
    held_out: int

    @property
    def mean(self) -> float:
        """Tokens of an example; of both answers to a preference."""
        return self.tokens / max(1, self.examples)


def context_limit(settings: FinetuneConfig, model: GPTConfig) -> int:
    """Tokens of an example at most.

    :raises UsageError: more were asked for than the model has.
    """
    wanted = settings.context_length
    if wanted is not None and wanted > model.context_length:
        limit = model.context_length
        raise UsageError(f"context_length {wanted} is longer than the model's {limit}; use --context-length {limit} or less")
    return wanted or min(model.context_length, CONTEXT_LIMIT)


def lora_settings(settings: FinetuneConfig) -> LoraSettings | None:
    """The adapter that was asked for; None trains the model itself."""
    if settings.lora is False:
        return None
    rank = settings.rank or 16
    return LoraSettings(
        rank=rank, alpha=settings.alpha or 2.0 * rank, dropout=settings.lora_dropout or 0.0,
        targets=settings.target_names or ("all",), rslora=settings.rslora, dora=settings.dora,
    )  # fmt: skip


def optimizer_settings(settings: FinetuneConfig, model: GPTConfig, method: Method, row_length: float | None) -> OptimizerSettings:
    """AdamW with the rate that fits the size of the model, and of what an adapter changes.

    :param row_length: typical of the matrices that an adapter changes; None where the model itself is trained.
    """
    rate, is_lora = settings.learning_rate, row_length is not None
    if rate is None:
        low, high = RATE_LIMITS
        whole = min(high, max(low, FULL_RATE * math.sqrt(REFERENCE_PARAMETERS / model.parameter_count())))
        factor = 1.0 if row_length is None else _adapter_factor(settings, method, row_length)
        rate = whole * factor * METHOD_FACTORS[method]
    decay = settings.weight_decay or 0.0
    head = rate if settings.learning_rate or is_lora else rate * LORA_FACTOR if method == "classify" else rate
    return OptimizerSettings("adamw", rate, rate, head, rate, decay, 0.0, betas=(0.9, 0.99), epsilon=1e-8)


def _adapter_factor(settings: FinetuneConfig, method: Method, row_length: float) -> float:
    """Times the rate of a whole model."""
    lora, (low, high) = lora_settings(settings), ROW_LENGTHS
    assert lora is not None
    factor = ANSWERS_FACTOR * min(high, max(low, row_length)) ** ROW_POWER if method == "sft" else LORA_FACTOR
    return factor * min(1.0, USUAL_SCALE / lora.scale)


def replay_share(settings: FinetuneConfig, method: Method) -> float:
    """Of the rows that are general text: what was asked for; or else some where answers are learned, if text is named or the time
    is, since writing it takes some, and other runs are the same whatever the clock says."""
    if settings.replay is not None:
        return settings.replay
    takes_time = budget_seconds(settings) is not None and method == "sft" and not settings.label_words
    return REPLAY if takes_time or settings.replay_from else 0.0


def shape_of(settings: FinetuneConfig, model: GPTConfig, method: Method, facts: Facts, tokens_affordable: float) -> Shape:
    """Rows and batch.

    :param tokens_affordable: that the time has room for; infinite where it does not decide.
    """
    step_tokens = _step_tokens(settings, facts, tokens_affordable)
    context = _row(settings, model, facts, step_tokens)
    each = context if settings.pack and method == "sft" else facts.mean
    if settings.batch_size:
        return Shape(context, settings.batch_size, settings.accumulation or 1, settings.pack)
    units = max(1, round(step_tokens / each)) if method == "sft" else _units_a_step(method, facts, tokens_affordable)
    accumulation = settings.accumulation or -(-units // units_at_once(model, each))
    return Shape(context, max(1, round(units / accumulation)), accumulation, settings.pack)


def units_at_once(model: GPTConfig, tokens: float) -> int:
    """Rows, pairs or texts of so many tokens in one forward pass."""
    return max(1, round(PASS_VALUES / (model.hidden_size * model.layers * max(tokens, 1))))


def _step_tokens(settings: FinetuneConfig, facts: Facts, affordable: float) -> float:
    """Of answers to learn: enough steps a pass, enough in the time."""
    few = MODEL_STEP_TOKENS if lora_settings(settings) is None else LEAST_STEP_TOKENS
    most = MOST_STEP_TOKENS if facts.tokens > MANY_TOKENS else few
    return max(LEAST_STEP_TOKENS, min(most, facts.tokens / STEPS_A_PASS, affordable / LEAST_STEPS))


def _row(settings: FinetuneConfig, model: GPTConfig, facts: Facts, step_tokens: float) -> int:
    """Tokens of a row: as many as were asked for, or what packs well and is no more than a step."""
    limit = context_limit(settings, model)
    longest = min(limit, _rounded(facts.longest))
    if not settings.pack:
        return longest
    return settings.context_length or max(longest, min(limit, PACKED_ROW, _rounded(step_tokens)))


def _rounded(tokens: float) -> int:
    return math.ceil(tokens / ROUNDED_TO) * ROUNDED_TO


def _units_a_step(method: Method, facts: Facts, affordable: float) -> int:
    """Pairs or texts."""
    at_most = PREFERENCES_A_STEP if method in PREFERENCE_METHODS else TEXTS_A_STEP
    in_time = at_most if math.isinf(affordable) else int(affordable / LEAST_STEPS / max(facts.mean, 1))
    return max(2, min(at_most, facts.examples // STEPS_A_PASS, in_time))


def budget_seconds(settings: FinetuneConfig) -> float | None:
    """For everything, None where steps or passes decide."""
    return None if settings.steps or settings.epochs else 60.0 * (settings.minutes or DEFAULT_MINUTES)


def most_examples(model: GPTConfig, seconds: float | None) -> int | None:
    """How many examples a run of some seconds could come to see, generously; None where time does not decide."""
    if seconds is None:
        return None
    in_time = LEARNING_RATE_LIMIT / model.parameter_count() * seconds / SHORT_EXAMPLE
    rendered = RENDERING_SHARE * seconds / RENDERING_SECONDS
    return int(max(FEWEST_DRAWN, min(in_time, rendered)))


def make_recipe(
    settings: FinetuneConfig, model: GPTConfig, method: Method, *, dtype: str, row_length: float, labels: tuple[str, ...] = ()
) -> Recipe:
    """What is trained and with which rate; this does not depend on the time.

    :param row_length: typical of the model's matrices.
    """
    lora = lora_settings(settings)
    optimizer = optimizer_settings(settings, model, method, row_length if lora else None)
    return Recipe(
        method=method, lora=lora, optimizer=optimizer, dtype=dtype,
        seed=settings.seed, labels=labels, beta=settings.beta or 0.1, label_smoothing=settings.label_smoothing,
        checkpointing=settings.checkpointing, int8_base=settings.int8_base,
    )  # fmt: skip


def make_plan(
    settings: FinetuneConfig, model: GPTConfig, recipe: Recipe, facts: Facts, *, trained_parameters: int, seconds: float | None,
    tokens_per_second: float, steps_per_epoch: Callable[[Shape], float],
) -> FinetunePlan:  # fmt: skip
    """The run that ends in ``seconds`` of training (or after the steps or passes that ``settings`` name).

    :param tokens_per_second: as measured; not-a-number where time does not decide.
    :param steps_per_epoch: how many steps of a shape one pass over the examples takes, general text left out.
    :raises UsageError: sizes do not fit together.
    """
    affordable = math.inf if seconds is None else seconds * tokens_per_second
    shape = shape_of(settings, model, recipe.method, facts, affordable)
    replay = replay_share(settings, recipe.method)
    a_pass = max(steps_per_epoch(shape), 1e-6) / (1.0 - replay)
    step_tokens = facts.tokens / (1.0 - replay) / a_pass
    is_quick = recipe.lora is not None and recipe.method == "sft"
    steps, limit, reason = _steps(settings, facts, a_pass, step_tokens, affordable, is_quick=is_quick)
    warmup = max(0.03, min(0.1, 10 / steps))
    rate = recipe.optimizer.matrix_rate
    course = Course(
        steps=steps, budget_seconds=seconds, step_limit=limit, patience=_patience(settings, facts),
        accumulation=shape.accumulation, learning_rate=rate, warmup=warmup, decay=1.0 - warmup,
        evaluation_interval=max(1, steps // LOOKS), validation_share=VALIDATION_SHARE,
        averages_from=AVERAGES_FROM if is_quick else None,
    )  # fmt: skip
    epochs = steps / a_pass
    return FinetunePlan(
        recipe=recipe, shape=shape, course=course, examples=facts.examples, tokens=facts.tokens, epochs=epochs,
        tokens_per_second=tokens_per_second, trained_parameters=trained_parameters, replay=replay,
        reasons=(
            _what_is_trained(recipe, trained_parameters, model),
            f"learning rate: {rate:.2g}, {_why_rate(settings, recipe, model)}",
            _what_a_step_is(recipe, shape),
            f"steps: {reason}, {epochs:.1f} passes over {facts.examples:,} examples of {facts.tokens:,} tokens",
            *([f"against forgetting: {replay:.0%} of the rows are general text"] if replay else []),
        ),
    )  # fmt: skip


def _steps(
    settings: FinetuneConfig, facts: Facts, a_pass: float, step_tokens: float, affordable: float, *, is_quick: bool
) -> tuple[int, int | None, str]:
    """(steps, those after which a timed run ends as well, why)

    :param is_quick: it learns with a high rate.
    """
    if settings.steps:
        return settings.steps, None, f"{settings.steps:,} as given"
    if settings.epochs:
        steps = max(1, round(settings.epochs * a_pass))
        return steps, None, f"{steps:,} for {settings.epochs:g} passes as given"
    passes = next(passes for examples, passes in PASSES if facts.examples <= examples) * (1.0 if is_quick else PASSES_OF_OTHERS)
    limit = max(1, math.ceil(passes * a_pass))
    in_time = max(1, int(affordable / max(step_tokens, 1.0)))
    if in_time < limit:
        return in_time, limit, f"about {in_time:,} in the time there is"
    return limit, limit, f"{limit:,}: more than {passes:g} passes over so few examples would only memorise"


def _patience(settings: FinetuneConfig, facts: Facts) -> int | None:
    """A number of steps that was given is taken; other runs end when the held-out loss rises."""
    if settings.patience is not None:
        return settings.patience
    return PATIENCE if facts.held_out and not settings.steps else None


def _what_is_trained(recipe: Recipe, trained: int, model: GPTConfig) -> str:
    whole, lora = model.parameter_count(), recipe.lora
    if lora is None:
        return f"trained: the model itself, {whole / 1e6:.1f}M parameters"
    kind = "DoRA" if lora.dora else "LoRA"
    return f"trained: a {kind} adapter of rank {lora.rank}, {trained / 1e6:.2f}M parameters beside {whole / 1e6:.1f}M"


def _what_a_step_is(recipe: Recipe, shape: Shape) -> str:
    count, name = shape.batch_size * shape.accumulation, UNITS.get(recipe.method, "pairs")
    units = f"{count} {name if count > 1 else name[:-1]} a step"
    passes = f" in {shape.accumulation} passes" if shape.accumulation > 1 else ""
    packed = " that several examples are packed into" if shape.pack else ""
    return f"batch: {units}{passes}, rows of up to {shape.context_length:,} tokens{packed}"


def _why_rate(settings: FinetuneConfig, recipe: Recipe, model: GPTConfig) -> str:
    if settings.learning_rate:
        return "as given"
    whose, size = "an adapter of " if recipe.lora else "", f"a model of {model.parameter_count() / 1e6:.1f}M parameters"
    by_weights = " and the size of its weights" if recipe.lora and recipe.method == "sft" else ""
    return f"for {whose}{size}{by_weights}"
