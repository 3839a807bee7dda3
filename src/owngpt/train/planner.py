"""From a time and a text to a run: which vocabulary, size, context, batch and how many steps.

Two questions, asked in turn. Before the text is tokenized: how many tokens should the vocabulary have? After it: which model
will have the lowest held-out loss when the time is up? The answers come from the scaling law (:mod:`owngpt.train.scaling`) and
from how fast this machine turned out to be (:mod:`owngpt.train.throughput`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from owngpt.config.training import TrainConfig
from owngpt.errors import UsageError
from owngpt.model.config import GPTConfig
from owngpt.train.optimizer import OptimizerSettings
from owngpt.train.presets import native, preset
from owngpt.train.scaling import LAW
from owngpt.train.throughput import Measurement, optimizer_flops, probe, reference_seconds, step_flops
from owngpt.train.trainer import Course

SHAPES = (
    (64, 2), (64, 3), (128, 3), (128, 4), (192, 3), (192, 4), (192, 5), (256, 4), (256, 5), (256, 6), (320, 5), (320, 6),
    (384, 6), (384, 8), (448, 7), (512, 8), (576, 9), (640, 10), (768, 12), (1024, 16), (1280, 20), (1536, 24),
)  # fmt: skip
"""Widths and depths that are considered."""
MIN_STEPS = 40
TIE = 0.005
"""Bits per byte that the law cannot tell apart (its error on its own runs): the larger model is taken."""
PROBE_SHARE = 0.02
"""Of the budget that measuring this machine may take."""


@dataclass(frozen=True)
class TextFacts:
    """What the planner must know of the text. Sizes of the training part only, after cleaning."""

    byte_count: int
    token_count: int
    vocab_size: int
    """Rows of the embedding: the tokenizer's length, rounded up."""

    @property
    def bytes_per_token(self) -> float:
        """Mean bytes a token stands for."""
        return self.byte_count / max(1, self.token_count)


@dataclass(frozen=True)
class Plan:
    """A run, fully resolved."""

    model: GPTConfig
    optimizer: OptimizerSettings
    course: Course
    batch_size: int
    """Sequences in one forward pass, on each rank."""
    clip: float
    dtype: str
    """"bfloat16" or "float32": what the matrices are computed in."""
    document_mask: bool
    seed: int
    tokens: int
    """Expected training tokens."""
    epochs: float
    """Expected passes over the text."""
    tokens_per_second: float
    """Measured, or NaN."""
    expected_bits_per_byte: float
    """NaN for a model that goes on from another."""
    reasons: tuple[str, ...]
    """Why, a line each."""
    ranks: int = 1
    """Processes that train together; each takes ``batch_size`` sequences a pass."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and YAML."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plan:
        """The inverse of :meth:`to_dict`."""
        values = dict(values)
        values["model"] = GPTConfig.from_dict(values["model"])
        values["optimizer"] = OptimizerSettings(**{**values["optimizer"], "betas": tuple(values["optimizer"]["betas"])})
        values["course"] = Course(**values["course"])
        values["reasons"] = tuple(values["reasons"])
        return cls(**values)


def vocabulary_size(settings: TrainConfig, byte_count: int, seconds: float | None) -> int:
    """How many tokens a tokenizer trained for this run should have.

    A larger vocabulary shortens the text but costs parameters that rare tokens barely train: it grows with the text that will be
    seen, between 512 and 32,768.
    """
    if settings.vocab_size:
        return settings.vocab_size
    if settings.preset not in (None, "native"):
        return min(preset(settings.preset).vocab_size, 64 * (byte_count // 640 + 8))
    seconds = 600.0 if seconds is None else max(1.0, seconds)
    wanted = 2048 * (byte_count / 5e6) ** 0.4 * (seconds / 145.0) ** 0.4
    return int(min(32768, max(512, round(wanted / 256) * 256)))


def compute_type(device: torch.device, features: tuple[str, ...]) -> torch.dtype:
    """bfloat16 where it is native (AMX, AVX512-BF16, CUDA), else float32."""
    native_bf16 = device.type == "cuda" or bool({"amx_bf16", "avx512_bf16"} & set(features))
    return torch.bfloat16 if native_bf16 else torch.float32


Prober = Callable[[GPTConfig, int, float], Measurement]


def make_plan(
    settings: TrainConfig,
    facts: TextFacts,
    *,
    seconds: float | None,
    dtype: torch.dtype,
    device: torch.device,
    ranks: int = 1,
    base: GPTConfig | None = None,
) -> Plan:
    """The run that ends in ``seconds`` (or after the steps or tokens that ``settings`` name) with the lowest expected loss.

    ``ranks`` processes share every step; each is taken to be as fast as this one alone. ``base`` is the shape of a model that
    the run goes on from; then only context, batch and rates are chosen.
    Raises UsageError when explicit sizes do not fit together or the text is shorter than one context.
    """

    def measured(config: GPTConfig, batch_size: int, limit: float) -> Measurement:
        kind = optimizer_kind(settings, config, batch_size * ranks, goes_on=base is not None)
        return probe(config, batch_size, dtype=dtype, device=device, seconds=limit, kind=kind)

    chooser = _Chooser(settings, facts, seconds, measured, ranks, base)
    config, batch_size, accumulation, reasons = chooser.choose()
    return _resolve(settings, facts, chooser, config, batch_size, accumulation, reasons, dtype)


class _Chooser:
    """Finds shape and batch; remembers how slow this machine is."""

    def __init__(
        self, settings: TrainConfig, facts: TextFacts, seconds: float | None, measured: Prober, ranks: int = 1,
        base: GPTConfig | None = None,
    ) -> None:  # fmt: skip
        self.settings, self.facts, self.measured, self.ranks = settings, facts, measured, ranks
        self.seconds, self.base = seconds, base
        self.slowness = 1.0
        self.step_seconds = math.nan

    def choose(self) -> tuple[GPTConfig, int, int, list[str]]:
        """(model, sequences a pass, passes a step, reasons)"""
        settings = self.settings
        base = None if settings.preset in (None, "native") else preset(settings.preset)  # type: ignore[arg-type]
        fixed = base is not None or (settings.layers and settings.hidden_size)
        if self.base is not None:
            config = replace(
                self.base, context_length=self.context_length(), dropout=settings.dropout or 0.0, attention_dropout=0.0
            )
            batch, accumulation = self._batch(config)
            reasons = [f"size: {config.parameter_count() / 1e6:.2f}M parameters, those of {settings.from_model}"]
        elif fixed or self.seconds is None:
            hidden, layers = (base.hidden_size, base.layers) if base else (256, 4)
            config = self._shape(settings.hidden_size or hidden, settings.layers or layers)
            batch, accumulation = self._batch(config)
            reasons = [
                "size: as given" if fixed else "size: the default for runs counted in steps; name --minutes to have it chosen"
            ]
        else:
            config, batch, accumulation, reasons = self._best()
        if self.seconds is not None:
            limit = max(0.3, self.seconds * PROBE_SHARE / 2)
            self.step_seconds = self.measured(config, batch, limit).seconds * accumulation
        return config, batch, accumulation, reasons

    def _candidates(self) -> list[tuple[int, int]]:
        """(width, depth) of every shape that fits what was given."""
        settings = self.settings
        shapes = sorted({(settings.hidden_size or hidden, settings.layers or layers) for hidden, layers in SHAPES})
        fitting = [shape for shape in shapes if not settings.heads or shape[0] % settings.heads == 0]
        return fitting or [(64 * (settings.heads or 1), settings.layers or 4)]

    def _calibrate(self, hidden: int, layers: int) -> None:
        """Time one shape: its slowness holds for the others."""
        assert self.seconds is not None
        config = self._shape(hidden, layers)
        batch = max(1, 4096 // config.context_length)
        found = self.measured(config, batch, max(0.3, self.seconds * PROBE_SHARE / 2))
        self.slowness = found.slowness(config, batch)

    def _best(self) -> tuple[GPTConfig, int, int, list[str]]:
        assert self.seconds is not None
        candidates = self._candidates()
        self._calibrate(*min(candidates, key=lambda shape: (abs(shape[0] - 128), abs(shape[1] - 3))))
        scored = []
        for hidden, layers in candidates:
            config = self._shape(hidden, layers)
            batch, accumulation = self._batch(config)
            scored.append((self._expected(config, batch * accumulation), config, batch, accumulation))
        possible = [row for row in scored if math.isfinite(row[0])]
        if not possible:
            _, config, batch, accumulation = min(scored, key=lambda row: row[1].parameter_count())
            reason = f"size: the smallest; even it gets fewer than {MIN_STEPS} steps in {self.seconds:.0f} s here"
            return config, batch, accumulation, [reason]
        lowest = min(row[0] for row in possible)
        tied = [row for row in possible if row[0] <= lowest + TIE]
        expected, config, batch, accumulation = max(tied, key=lambda row: row[1].parameter_count())
        reason = (
            f"size: {config.layers} layers of width {config.hidden_size} ({config.parameter_count() / 1e6:.2f}M parameters), the "
            f"lowest expected loss of {len(scored)} shapes in {self.seconds:.0f} s of training here"
        )
        if others := [row for row in possible if row[1] != config]:
            second = min(others, key=lambda row: row[0])
            reason += f"; next {second[1].layers} x {second[1].hidden_size}, {second[0] - expected:+.3f} bits per byte"
        return config, batch, accumulation, [reason]

    def _expected(self, config: GPTConfig, sequences: int) -> float:
        assert self.seconds is not None
        duration = reference_seconds(config, sequences) * self.slowness
        steps = self.seconds / duration
        if steps < MIN_STEPS:
            return math.inf
        seen = steps * sequences * self.ranks * config.context_length * self.facts.bytes_per_token
        return LAW.bits_per_byte(body_parameters(config), seen, self.facts.byte_count)

    def context_length(self) -> int:
        """Tokens: longer for more time, never more than the text holds."""
        wanted = self.settings.context_length
        if wanted is None:
            wanted = 256 if (self.seconds or 600) < 900 else 512
            if self.settings.preset not in (None, "native"):
                wanted = preset(self.settings.preset).context_length if self.settings.preset else wanted
            wanted = min(wanted, self.base.context_length) if self.base else wanted
            while wanted > 16 and wanted * 8 > self.facts.token_count:
                wanted //= 2
        if self.base and wanted > self.base.context_length:
            limit = self.base.context_length
            raise UsageError(f"context_length {wanted} is longer than the model's {limit}; use --context-length {limit} or less")
        if wanted + 1 > self.facts.token_count:
            raise UsageError(
                f"the text has {self.facts.token_count} tokens, fewer than one context of {wanted}; give more text or "
                f"--context-length {max(2, self.facts.token_count // 2)}"
            )
        return wanted

    def _shape(self, hidden: int, layers: int) -> GPTConfig:
        settings = self.settings
        changes: dict[str, Any] = {"dropout": settings.dropout or 0.0}
        if settings.heads:
            if hidden % settings.heads:
                raise UsageError(f"hidden_size {hidden} is not a multiple of heads {settings.heads}; choose heads that divide it")
            changes |= {"heads": settings.heads, "key_value_heads": settings.heads, "head_size": hidden // settings.heads}
        if settings.key_value_heads:
            changes["key_value_heads"] = settings.key_value_heads
        if settings.preset in (None, "native"):
            changes["tie_embeddings"] = self.facts.vocab_size * hidden > UNTIED_VALUES
            return native(self.facts.vocab_size, self.context_length(), hidden, layers, **changes)
        base = preset(settings.preset)  # type: ignore[arg-type]
        changes |= {"vocab_size": self.facts.vocab_size, "context_length": self.context_length()}
        if settings.layers:
            changes["layers"] = settings.layers
        if settings.hidden_size and settings.hidden_size != base.hidden_size:
            width = settings.hidden_size
            heads = settings.heads or max(1, width // base.head_size)
            if width % heads:
                raise UsageError(f"hidden_size {width} is not a multiple of {heads} heads; choose a width or --heads that divide")
            changes |= {"hidden_size": width, "heads": heads, "key_value_heads": settings.key_value_heads or heads}
            changes |= {"head_size": width // heads, "intermediate_size": 4 * width}
        return preset(settings.preset, **changes)  # type: ignore[arg-type]

    def _batch(self, config: GPTConfig) -> tuple[int, int]:
        """(sequences a pass, passes a step)."""
        settings, context = self.settings, config.context_length
        if settings.batch_size:
            return settings.batch_size, settings.accumulation or 1
        tokens = step_tokens(self.seconds)
        tokens = min(tokens, max(context, self.facts.token_count // 8))
        sequences = max(1, round(max(1, tokens // context) / self.ranks))
        at_once = max(1, PASS_VALUES // (config.hidden_size * config.layers * context))
        accumulation = settings.accumulation or -(-sequences // at_once)
        return max(1, round(sequences / accumulation)), accumulation


UNTIED_VALUES = 16 * 1024 * 1024
"""Values of the embedding up to which the head gets a matrix of its own: better for the same time while updating it is cheap."""
PASS_VALUES = 64 * 1024 * 1024
"""Tokens x width x layers in one forward pass: bounds the memory of activations (about 40 bytes each)."""


def step_tokens(seconds: float | None) -> int:
    """Tokens a step: small batches learn most per token, long runs average more."""
    return 4096 if (seconds or 600.0) < 900 else 8192 if (seconds or 600.0) < 3600 else 16384


def body_parameters(config: GPTConfig) -> int:
    """Parameters without embeddings and head."""
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_embeddings else 2)
    return (
        config.parameter_count()
        - embeddings
        - (config.context_length * config.hidden_size if config.positions == "learned" else 0)
    )


def optimizer_kind(settings: TrainConfig, config: GPTConfig, sequences: int, *, goes_on: bool = False) -> str:
    """Muon, unless orthogonalising would take more than :data:`MUON_SHARE` of what the steps' own products take.

    A model that goes on was most likely made by AdamW, and would first lose what it knows to updates of another kind.
    """
    if settings.optimizer:
        return settings.optimizer
    if goes_on:
        return "adamw"
    return "muon" if optimizer_flops(config) <= MUON_SHARE * step_flops(config, sequences) else "adamw"


MUON_SHARE = 0.6
"""Muon needs about a third fewer steps than AdamW; beyond this share the steps themselves become too slow."""


CONTINUED_RATE = 0.1
"""Of a new model's learning rate: what a trained model learns with without forgetting."""


def optimizer_settings(
    settings: TrainConfig, config: GPTConfig, kind: str, step_token_count: int, *, goes_on: bool = False
) -> OptimizerSettings:
    """Rates grow with the square root of the batch; decay 0.1 did as well as none up to two passes (benchmarks/NOTES.md)."""
    batch = math.sqrt(step_token_count / 4096) * (CONTINUED_RATE if goes_on else 1.0)
    decay = settings.weight_decay if settings.weight_decay is not None else 0.1
    if kind == "adamw":
        rate = settings.learning_rate or 3e-3 * math.sqrt(256 / config.hidden_size) * batch
        return OptimizerSettings("adamw", rate, rate, rate, rate, decay, 0.0, betas=(0.9, 0.95), epsilon=1e-8)
    rate = settings.learning_rate or 0.02 * batch
    scale = rate / 0.02
    return OptimizerSettings("muon", rate, 0.03 * scale, 0.03 * scale, 0.01 * scale, decay, 0.0)


def _resolve(
    settings: TrainConfig, facts: TextFacts, chooser: _Chooser, config: GPTConfig, batch: int, accumulation: int,
    reasons: list[str],    dtype: torch.dtype,
) -> Plan:  # fmt: skip
    per_step = batch * accumulation * chooser.ranks * config.context_length
    steps = _steps(settings, chooser, per_step)
    epochs = steps * per_step / max(1, facts.token_count)
    if settings.dropout is None and epochs > DROPOUT_EPOCHS:
        config = replace(config, dropout=0.1)
        reasons.append(f"dropout 0.1: the text is read {epochs:.0f} times")
    goes_on = chooser.base is not None
    sequences = batch * accumulation * chooser.ranks  # the same however many share the step
    kind = optimizer_kind(settings, config, sequences, goes_on=goes_on)
    optimizer = optimizer_settings(settings, config, kind, per_step, goes_on=goes_on)
    seen = steps * per_step * facts.bytes_per_token
    reasons += [
        f"vocabulary: {facts.vocab_size:,} tokens of {facts.bytes_per_token:.2f} bytes",
        f"steps: about {steps:,} of {per_step:,} tokens, {epochs:.2f} passes over {facts.byte_count / 1e6:.1f} MB",
    ]
    # The law is of new models.
    expected = math.nan if goes_on else LAW.bits_per_byte(body_parameters(config), seen, facts.byte_count)
    course = Course(
        steps=steps, budget_seconds=chooser.seconds, accumulation=accumulation, learning_rate=optimizer.matrix_rate,
        warmup=max(0.01, min(0.1, 10 / steps)), decay=0.6, evaluation_interval=max(10, min(250, steps // 10)),
    )  # fmt: skip
    return Plan(
        model=config, optimizer=optimizer, course=course, batch_size=batch, clip=1.0, dtype=str(dtype).removeprefix("torch."),
        document_mask=settings.document_mask, seed=settings.seed, tokens=steps * per_step, epochs=epochs,
        tokens_per_second=per_step / chooser.step_seconds,
        expected_bits_per_byte=expected, reasons=tuple(reasons), ranks=chooser.ranks,
    )  # fmt: skip


DROPOUT_EPOCHS = 8.0
"""Passes over the text from which on dropout pays."""


def _steps(settings: TrainConfig, chooser: _Chooser, per_step: int) -> int:
    if settings.steps:
        return settings.steps
    if settings.tokens:
        return max(1, round(settings.tokens / per_step))
    assert chooser.seconds is not None
    return max(1, int(chooser.seconds / chooser.step_seconds))


def what_fits(minutes: float) -> dict[str, str]:
    """For ``owngpt doctor``: the model that this machine would train in some minutes on ten megabytes of text."""
    from owngpt.kernels.machine import describe_machine

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = compute_type(device, describe_machine().features)
    vocab = vocabulary_size(TrainConfig(), 10_000_000, 60 * minutes)
    facts = TextFacts(10_000_000, 4_000_000, vocab)
    plan = make_plan(TrainConfig(minutes=minutes), facts, seconds=60 * minutes, dtype=dtype, device=device)
    shape = plan.model
    return {
        "model": f"{shape.layers} layers of width {shape.hidden_size}, {shape.parameter_count() / 1e6:.1f}M parameters",
        "vocabulary": f"{vocab:,} tokens",
        "speed": f"{plan.tokens_per_second:,.0f} tokens/s",
        "training tokens": f"{plan.tokens / 1e6:.1f} million",
    }
