"""Training steps side by side: OwnGPT's own step against plain PyTorch in bfloat16 on the same shape and tokens.

The contenders take turns, one step each, so that whatever else the machine does slows all of them down alike; the matmul
ceiling is measured again in every round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from plain import PlainTrainer
from report import print_table, spread, spread_dict

from owngpt.kernels.build import compiler
from owngpt.kernels.ceiling import matmul_ceiling
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.train.optimizer import OptimizerSettings
from owngpt.train.presets import native, preset
from owngpt.train.step import TrainModule
from owngpt.train.throughput import random_batch, step_flops

Step = Callable[[], object]
CEILING_SECONDS = 0.1
WARMUP = 2
"""Untimed steps of each contender."""
PLAIN = "plain PyTorch"


@dataclass(frozen=True)
class Shape:
    """A model and how much it reads a step."""

    name: str
    config: GPTConfig
    batch_size: int

    @property
    def tokens(self) -> int:
        """Tokens a step."""
        return self.batch_size * self.config.context_length


SPEED = Shape("12M", native(4096, 256, 384, 6), 16)
CEILING = (
    Shape("1M", native(1024, 256, 128, 5), 16),
    Shape("10M", native(4096, 256, 384, 5), 16),
    Shape("124M (gpt2)", preset("gpt2"), 2),
)


def speed(rounds: int, *, compiled: bool, lean: bool = True, shape: Shape = SPEED) -> dict[str, Any]:
    """Tokens a second at 6 layers × 384. ``lean``: plain PyTorch also without QK-norm, which is less work than ours."""
    result = _compare(shape, rounds, compiled=compiled, lean=lean)
    print_table(f"Training speed: {_described(shape)}", _COLUMNS, _rows(result), _NOTES)
    return {"shape": shape.name, **result}


def ceiling(rounds: int, *, compiled: bool, shapes: tuple[Shape, ...] = CEILING) -> dict[str, Any]:
    """Share of the measured bf16 matmul rate at several sizes."""
    results = {}
    for shape in shapes:
        results[shape.name] = _compare(shape, rounds, compiled=compiled, lean=False)
        print_table(f"Share of the matmul ceiling: {_described(shape)}", _COLUMNS, _rows(results[shape.name]), _NOTES)
    return results


def _compare(shape: Shape, rounds: int, *, compiled: bool, lean: bool) -> dict[str, Any]:
    """Seconds a step, tokens a second, share of the ceiling and ratio to the fastest plain PyTorch, for every contender."""
    contenders = _contenders(shape, compiled=compiled, lean=lean)
    for step in contenders.values():
        for _ in range(WARMUP):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    ceilings: list[float] = []
    for _ in range(rounds):
        ceilings.append(matmul_ceiling(torch.bfloat16, CEILING_SECONDS))
        for name, step in contenders.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    return _result(shape, seconds, ceilings)


def _result(shape: Shape, seconds: dict[str, list[float]], ceilings: list[float]) -> dict[str, Any]:
    rate, flops = statistics.median(ceilings), step_flops(shape.config, shape.batch_size)
    plain = {name: statistics.median(values) for name, values in seconds.items() if name.startswith(PLAIN)}
    reference = min(plain, key=lambda name: plain[name])
    sides = {
        name: {
            "seconds": spread_dict(values),
            "tokens_per_second": spread_dict([shape.tokens / value for value in values]),
            "share_of_ceiling": spread_dict([flops / value / rate for value in values]),
            "ratio": spread_dict([theirs / value for theirs, value in zip(seconds[reference], values, strict=True)]),
        }
        for name, values in seconds.items()
    }
    return {
        "config": shape.config.to_dict(), "parameters": shape.config.parameter_count(), "tokens_per_step": shape.tokens,
        "flops_per_step": flops, "ceiling": spread_dict(ceilings), "reference": reference, "sides": sides,
    }  # fmt: skip


def _contenders(shape: Shape, *, compiled: bool, lean: bool) -> dict[str, Step]:
    found: dict[str, Step] = {
        "owngpt, Muon": our_step(shape, "muon"),
        "owngpt, AdamW": our_step(shape, "adamw"),
        f"{PLAIN}, eager": plain_step(shape),
    }
    if lean and shape.config.query_key_norm:
        found[f"{PLAIN}, no QK-norm"] = plain_step(replace(shape, config=replace(shape.config, query_key_norm=False)))
    if compiled and compiler():
        found[f"{PLAIN}, compiled"] = plain_step(shape, compiled=True)
    return found


def our_step(shape: Shape, optimizer: str) -> Step:
    model = GPT(shape.config, generator=torch.Generator().manual_seed(0))
    module = TrainModule(
        model, OptimizerSettings(kind=optimizer, matrix_rate=0.02 if optimizer == "muon" else 1e-3), dtype=torch.bfloat16
    )
    batch = random_batch(shape.config, shape.batch_size)
    return lambda: module.run([batch], 0.1)


def plain_step(shape: Shape, *, compiled: bool = False) -> Step:
    model = GPT(shape.config, generator=torch.Generator().manual_seed(0))
    trainer = PlainTrainer(shape.config, model.state_dict(), compiled=compiled)
    batch = random_batch(shape.config, shape.batch_size)
    return lambda: trainer.step(batch.inputs, batch.targets)


_COLUMNS = ("side", "seconds a step", "tokens/s", "share of ceiling", "ratio")
_NOTES = (
    f"ratio: to the fastest {PLAIN}, round by round; median (min–max); one step each in turn",
    "AdamW on both sides is the same work; Muon, the recipe of `owngpt train`, is more, and its products count as no useful work",
)


def _rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = [
        (
            name, spread(side["seconds"]["values"], ".3f"), spread(side["tokens_per_second"]["values"], ",.0f"),
            spread(side["share_of_ceiling"]["values"]), spread(side["ratio"]["values"]),
        )
        for name, side in result["sides"].items()
    ]  # fmt: skip
    teraflops = [value / 1e12 for value in result["ceiling"]["values"]]
    return [*rows, ("(bf16 matmul ceiling)", "", "", f"{spread(teraflops)} Tflop/s", "")]


def _described(shape: Shape) -> str:
    config = shape.config
    return (
        f"{config.parameter_count() / 1e6:.1f}M parameters, {config.layers} layers × {config.hidden_size}, "
        f"context {config.context_length}, vocabulary {config.vocab_size:,}, {shape.tokens:,} tokens a step"
    )
