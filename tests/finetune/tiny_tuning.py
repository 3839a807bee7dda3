"""Tiny models and stores that the tests of objectives train on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from owngpt.finetune.examples.example import Origin
from owngpt.finetune.sequences.encoded import Encoded
from owngpt.finetune.sequences.store import ExampleStore, write_store
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.train.optimizer import OptimizerSettings

VOCABULARY = 64
ADAMW = OptimizerSettings(kind="adamw", matrix_rate=1e-2, embedding_rate=1e-2, head_rate=1e-2, vector_rate=1e-2, epsilon=1e-8)


def make_config(**changes: object) -> GPTConfig:
    values = {
        "vocab_size": VOCABULARY, "context_length": 64, "hidden_size": 32, "layers": 2, "heads": 4, "key_value_heads": 2,
        "head_size": 8, "intermediate_size": 48,
    }  # fmt: skip
    return GPTConfig(**{**values, **changes})  # type: ignore[arg-type]


def make_model(*, seed: int = 0, **changes: object) -> GPT:
    model = GPT(make_config(**changes), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():  # far enough from uniform that every gradient matters
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(5)
    return model


def encoded(ids: Sequence[int], prompt: int, line: int, label: int = -1) -> Encoded:
    """A sequence of which everything behind the prompt is learned; nothing where there is a label."""
    learned = (np.arange(len(ids)) >= prompt) & (label < 0)
    return Encoded(np.array(ids, dtype=np.int64), learned, Origin("tiny.jsonl", line), label)


def answers_store(folder: Path, count: int = 12, *, seed: int = 0) -> ExampleStore:
    """Prompts and answers of different lengths."""
    random = np.random.default_rng(seed)
    sequences = []
    for line in range(count):
        prompt, answer = random.integers(1, 8), random.integers(1, 12)
        sequences.append(encoded(random.integers(2, VOCABULARY, prompt + answer).tolist(), int(prompt), line + 1))
    return write_store(sequences, folder, context_length=32)


def pairs_store(folder: Path, count: int = 10, *, seed: int = 0) -> ExampleStore:
    """Preferences: the chosen answer is of even tokens, the rejected one of odd ones."""
    random = np.random.default_rng(seed)
    sequences = []
    for line in range(count):
        prompt = random.integers(2, VOCABULARY, random.integers(1, 6)).tolist()
        for odd in (0, 1):
            answer = (random.integers(1, VOCABULARY // 2 - 1, random.integers(2, 9)) * 2 + odd).tolist()
            sequences.append(encoded(prompt + answer, len(prompt), line + 1))
    return write_store(sequences, folder, context_length=32, pairs=True)


def texts_store(folder: Path, count: int = 24, *, classes: int = 3, seed: int = 0) -> ExampleStore:
    """Texts whose class is told by the tokens that they are made of."""
    random = np.random.default_rng(seed)
    sequences = []
    for line in range(count):
        label = line % classes
        ids = random.integers(2 + 20 * label, 2 + 20 * (label + 1), random.integers(3, 15)).tolist()
        sequences.append(encoded(ids, 0, line + 1, label))
    return write_store(sequences, folder, context_length=32)
