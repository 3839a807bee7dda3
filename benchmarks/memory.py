"""Peak memory of training the 124M preset with 2,048 tokens a step, each way in a process of its own.

As a program it is that process: ``python benchmarks/memory.py owngpt|plain STEPS`` trains and prints nothing.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from process import owngpt, run
from report import print_table
from texts import Texts

LIMIT = 1200.0
BATCH_SIZE, CONTEXT_LENGTH, VOCABULARY = 2, 1024, 50257


def memory(steps: int, corpus: Texts | None) -> dict[str, Any]:
    """Peak resident memory of our step, of plain PyTorch's and, given a text, of the whole of `owngpt train --preset gpt2`."""
    names = {"owngpt": "owngpt, the step (Muon)", "plain": "plain PyTorch, the step (AdamW)"}
    peaks = {name: run([sys.executable, __file__, name, str(steps)], limit=LIMIT).peak_bytes for name in names}
    if corpus:
        peaks["train"], vocabulary = _whole_run(steps, corpus)
        names["train"] = f"owngpt train --preset gpt2, everything (vocabulary {vocabulary:,})"
    rows = [(names[name], f"{peak / 2**30:.2f}", f"{peak / 1e9:.2f}") for name, peak in peaks.items()]
    tokens = BATCH_SIZE * CONTEXT_LENGTH
    print_table(f"Peak memory: gpt2 preset (124M), {tokens:,} tokens a step, {steps} steps", ("side", "GiB", "GB"), rows)
    return {"steps": steps, "tokens_per_step": tokens, "peak_bytes": peaks, "sides": names}


def _whole_run(steps: int, corpus: Texts) -> tuple[int, int]:
    """(peak bytes, rows of the vocabulary, which a small text does not fill)."""
    shape = ("--preset", "gpt2", "--batch-size", str(BATCH_SIZE), "--context-length", str(CONTEXT_LENGTH), "--accumulation", "1")
    with tempfile.TemporaryDirectory() as folder:
        arguments = (*shape, "--vocab-size", str(VOCABULARY), "--steps", str(steps), "--json")
        finished = run(owngpt("train", *corpus.train, "-o", Path(folder) / "model", *arguments), limit=LIMIT)
    return finished.peak_bytes, json.loads(finished.output)["plan"]["model"]["vocab_size"]


def _train(side: str, steps: int) -> None:
    from steps import Shape, our_step, plain_step

    from owngpt.train.presets import preset

    shape = Shape(side, preset("gpt2", context_length=CONTEXT_LENGTH), BATCH_SIZE)
    step = our_step(shape, "muon") if side == "owngpt" else plain_step(shape)
    for _ in range(steps):
        step()


if __name__ == "__main__":
    _train(sys.argv[1], int(sys.argv[2]))
