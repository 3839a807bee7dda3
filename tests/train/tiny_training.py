"""A real training that takes a second: a two-layer GPT on the bytes of a poem-sized text.

As a program, it trains in a folder and writes the weights, so that tests can kill it:
``python tiny_training.py FOLDER STEPS [--resume]``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from owngpt.data.batches import Batches, validation_batches
from owngpt.data.shards import TokenSplit
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.train.course import Course
from owngpt.train.display import Quiet
from owngpt.train.optimizer import OptimizerSettings
from owngpt.train.recorder import Yardsticks
from owngpt.train.step import TrainModule
from owngpt.train.trainer import Trainer

CONTEXT = 32
END_OF_TEXT = 0


def split_of(text: str) -> TokenSplit:
    """The bytes of ``text`` as one document, end-of-text around it."""
    tokens = np.array([END_OF_TEXT, *text.encode("utf-8"), END_OF_TEXT], dtype=np.uint16)
    return TokenSplit((tokens,), len(tokens), len(tokens) - 2, 1, END_OF_TEXT)


def text(seed: int, words: int = 1500) -> str:
    """Sentences that can be learned: few words, strict order."""
    chance = np.random.Generator(np.random.PCG64(seed))
    subjects, verbs, objects = ("the cat", "a dog", "my owl"), ("sees", "likes", "hears"), ("rain", "bread", "music")
    lines = (f"{chance.choice(subjects)} {chance.choice(verbs)} {chance.choice(objects)}." for _ in range(words // 4))
    return "\n".join(lines)


def make_module(*, seed: int = 1, dropout: float = 0.1, dtype: torch.dtype = torch.float32, rate: float = 0.02) -> TrainModule:
    """A small GPT with dropout, so that a resumed run must also drop the same elements."""
    config = GPTConfig(
        vocab_size=256, context_length=CONTEXT, hidden_size=32, layers=2, heads=2, key_value_heads=1, head_size=16,
        intermediate_size=64, dropout=dropout,
    )  # fmt: skip
    model = GPT(config, generator=torch.Generator().manual_seed(seed))
    return TrainModule(model, OptimizerSettings(matrix_rate=rate), dtype=dtype, seed=seed)


def make_trainer(
    folder: Path, course: Course, *, module: TrainModule | None = None, seed: int = 1, held_out: str | None = None, **options: Any
) -> Trainer:
    """A trainer over training and held-out text, by default of the same kind."""
    batches = Batches(split_of(text(0)), context_length=CONTEXT, batch_size=4, seed=seed)
    scored = validation_batches(split_of(text(1, 200) if held_out is None else held_out), context_length=CONTEXT, batch_size=8)
    options.setdefault("display", Quiet(open("/dev/null", "w")))  # noqa: SIM115 - lives as long as the trainer
    options.setdefault("yardsticks", Yardsticks(1.0, 1.0, flops_per_token=1e6, matmul_ceiling=1e10))
    options.setdefault("identity", {"data": "abc"})
    return Trainer(module or make_module(seed=seed), batches, scored, course, folder, **options)


def main(folder: Path, steps: int, resume: bool) -> None:
    """Trains, saves after every few steps, and writes the weights at the end."""
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    course = Course(steps=steps, evaluation_interval=7, checkpoint_seconds=0.0, accumulation=2, decay=0.4)
    trainer = make_trainer(folder / "run", course, module=make_module(dtype=torch.bfloat16))
    if resume:
        print("resumed from", trainer.restore(), flush=True)
    print("training", flush=True)
    result = trainer.run()
    save_file(trainer.module.weights(), folder / "model.safetensors")
    print("finished", result.step, result.best_step, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), "--resume" in sys.argv)
