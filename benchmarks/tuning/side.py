"""What a side of the fine-tuning race is given, and how its process is opened."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from owngpt.bench.process import SideProcess

CLASSES = {"owngpt": "tuning.our_side:OwnGPT", "peft": "tuning.peft_side:TransformersPEFT"}
"""Where each kind is implemented; imported only in its own process."""
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""All projections of a block, in Hugging Face's names."""

Chats = list[list[dict[str, str]]]
"""Conversations of role and content, each ending with the answer to learn."""


@dataclass(frozen=True)
class TuneSpec:
    """One side, and what it trains. Everything a side has to do the same as the others."""

    name: str
    kind: str
    """A key of :data:`CLASSES`."""
    path: str
    """A Hugging Face folder, in the type of ``dtype``."""
    threads: int
    vocab_size: int
    batch_size: int = 4
    context_length: int = 512
    dtype: str = "bfloat16"
    rank: int = 16
    """Of the adapters; 0 trains all weights."""
    alpha: float = 32.0
    learning_rate: float = 2e-4
    weight_decay: float = 0.0
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    options: dict[str, Any] = field(default_factory=dict)
    """A side's own settings."""

    @property
    def tokens(self) -> int:
        """Of one step."""
        return self.batch_size * self.context_length


def random_rows(spec: TuneSpec, seed: int) -> np.ndarray:
    """(B, T + 1) token ids, the same in every process: speed depends on their number only, and every one is learned."""
    shape = (spec.batch_size, spec.context_length + 1)
    return np.random.default_rng(seed).integers(0, spec.vocab_size, shape, dtype=np.int64)


def opened(spec: TuneSpec) -> SideProcess:
    """Its process, with the model loaded and nothing learned yet.

    :raises SideFailedError: it could not be opened.
    """
    command = [sys.executable, str(Path(__file__).parents[1] / "tune_worker.py"), json.dumps(asdict(spec))]
    return SideProcess(spec.name, command, "open its model", threads=spec.threads)
