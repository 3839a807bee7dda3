"""How fast this machine trains: a cost model for choosing among shapes, and a probe that runs the real step."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from owngpt.data.batches import Batch
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.train.optimizer import OptimizerSettings
from owngpt.train.step import TrainModule


def random_batch(config: GPTConfig, batch_size: int) -> Batch:
    """(B, T) ids without meaning, for timing; from a generator of its own."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, config.context_length)
    inputs, targets = (torch.randint(0, config.vocab_size, shape, generator=generator) for _ in range(2))
    return Batch(inputs, targets, None, 0.0)


def step_flops(config: GPTConfig, batch_size: int) -> float:
    """Floating-point operations of one training step without the optimizer: 6 a matrix weight and token (arXiv 2001.08361), and
    12 a layer, head element and visible token for attention."""
    tokens = batch_size * config.context_length
    matrices = config.parameter_count() - config.vocab_size * config.hidden_size * (0 if config.tie_embeddings else 1)
    if config.positions == "learned":
        matrices -= config.context_length * config.hidden_size
    visible = sum(min(config.window(layer) or config.context_length, config.context_length) for layer in range(config.layers)) / 2
    return tokens * (6.0 * matrices + 12.0 * visible * config.heads * config.head_size)


def optimizer_flops(config: GPTConfig) -> float:
    """Operations of Muon's five Newton-Schulz iterations over the blocks' matrices: 4 m²n + 2 m³ each, m the shorter side."""
    C, D, F = config.hidden_size, config.head_size, config.intermediate_size
    shapes = [
        (config.heads * D, C),
        (config.key_value_heads * D, C),
        (config.key_value_heads * D, C),
        (C, config.heads * D),
        (C, F),
    ]
    shapes += [(F, C)] * (2 if config.gated else 1)
    return config.layers * sum(5 * (4.0 * min(s) ** 2 * max(s) + 2.0 * min(s) ** 3) for s in shapes)


REFERENCE_RATE = 5.0e11
"""Matrix operations a second on the reference machine (2 cores with AMX), to which the constants below belong."""
ELEMENT_SECONDS = 5.5e-9
"""Seconds a token, layer and unit of width spent outside of matrix products there."""
LOGIT_SECONDS = 0.9e-9
"""Seconds a token and unit of vocabulary spent in the softmax there."""
FIXED_SECONDS = 1.2e-3
"""Seconds a step and layer spent launching operations there."""


def reference_seconds(config: GPTConfig, batch_size: int) -> float:
    """Expected duration of one step with Muon on the reference machine."""
    tokens = batch_size * config.context_length
    narrow = 1 + 48 / config.hidden_size
    products = (step_flops(config, batch_size) * narrow + optimizer_flops(config) * 2.5) / REFERENCE_RATE
    elements = tokens * (config.layers * config.hidden_size * ELEMENT_SECONDS + config.vocab_size * LOGIT_SECONDS)
    return products + elements + config.layers * FIXED_SECONDS


@dataclass(frozen=True)
class Measurement:
    """What a probe found."""

    seconds: float
    """Median duration of a step."""
    spent: float
    """Seconds the probe took."""

    def slowness(self, config: GPTConfig, batch_size: int) -> float:
        """How many times longer than on the reference machine."""
        return self.seconds / reference_seconds(config, batch_size)


def probe(
    config: GPTConfig, batch_size: int, *, dtype: torch.dtype, device: torch.device, seconds: float, kind: str = "muon"
) -> Measurement:
    """Train a throwaway model for about ``seconds`` (at least two steps) and time its steps."""
    began = time.perf_counter()
    model = GPT(config, generator=torch.Generator().manual_seed(0)).to(device)
    module = TrainModule(model, OptimizerSettings(kind=kind), dtype=dtype)
    batch = random_batch(config, batch_size)
    durations: list[float] = []
    while len(durations) < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        module.run([batch], 0.1)
        durations.append(time.perf_counter() - start)
        if len(durations) >= 2 and time.perf_counter() - began > 2 * seconds:
            break
    timed = sorted(durations[1:])
    return Measurement(timed[len(timed) // 2], time.perf_counter() - began)
