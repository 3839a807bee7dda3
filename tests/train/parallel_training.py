"""One rank of a small training, as a program: ``python parallel_training.py FOLDER STEPS BATCH_SIZE [STOP_AT]``.

Rank 0 trains as the others follow; with WORLD_SIZE unset it trains alone. At step STOP_AT the rank other than 0 dies.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_training import CONTEXT, make_module, split_of, text

from owngpt.data.batches import Batches, validation_batches
from owngpt.errors import ParallelError
from owngpt.train.course import Course
from owngpt.train.display import Quiet
from owngpt.train.parallel import Ranks
from owngpt.train.recorder import Yardsticks
from owngpt.train.trainer import Trainer


class Mortal(Batches):
    """Batches that end their process at one step."""

    stop_at = -1

    def next(self):  # type: ignore[no-untyped-def]
        if self.rank and self.stop_at == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.stop_at -= 1
        return super().next()


def main(folder: Path, steps: int, batch_size: int, stop_at: int) -> None:
    torch.set_num_threads(1)
    ranks = Ranks.from_environment()
    try:
        train(ranks, folder, steps, batch_size, stop_at)
    finally:  # also when the other rank is gone: threads of a connection that is left open can abort a process as it ends
        if ranks:
            ranks.leave()


def train(ranks: Ranks | None, folder: Path, steps: int, batch_size: int, stop_at: int) -> None:
    rank, size = (ranks.rank, ranks.size) if ranks else (0, 1)
    # Other ranks begin with other weights: what counts is what rank 0 gives them.
    module = make_module(seed=1 + rank, dropout=0.0)
    module.reducer = ranks
    batches = Mortal(split_of(text(0)), context_length=CONTEXT, batch_size=batch_size, seed=1, rank=rank, world_size=size)
    batches.stop_at = stop_at
    course = Course(steps=steps, evaluation_interval=5, checkpoint_seconds=1e9, accumulation=2)
    if ranks and not ranks.leads:
        ranks.follow(module, batches, accumulation=course.accumulation)
    else:
        held_out = validation_batches(split_of(text(1, 200)), context_length=CONTEXT, batch_size=8)
        trainer = Trainer(
            module, batches, held_out, course, folder, yardsticks=Yardsticks(1.0, 1.0), display=Quiet(), ranks=ranks,
        )  # fmt: skip
        trainer.run()
        if ranks:
            ranks.end()
    save_file(module.weights(), folder / f"rank-{rank}.safetensors")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else -1)
    except ParallelError as error:
        print(f"ParallelError: {error}", flush=True)
        sys.exit(1)
