"""On how many threads steps run, and beside AMX from how many rows on its tiles beat vector products of quantized weights:
measured on this machine, once for a shape.

A step's shape decides, and how much of the machine's caches and memory others use, so what is timed is a decoding step of some
of the model's own layers. The result is kept in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from owngpt.engine import records
from owngpt.engine.layout import ROWS
from owngpt.engine.packing import each_packed, packed_kinds
from owngpt.engine.paged import PagedContext, PagedMemory, Segment
from owngpt.engine.runner import PackedRunner
from owngpt.kernels import build
from owngpt.kernels.machine import usable_cores
from owngpt.kernels.packed import FEW, NEVER, PackedWeight, amx, tiles_from_unmeasured
from owngpt.kernels.tape import BufferPool, Tape
from owngpt.model.gpt import GPT

LAYERS = 6
"""Of the model, at most, in what is timed: more than the caches hold, and little enough to take a tenth of a second."""
RUNS = 4
BEFORE = 64
"""Tokens in the cache of each sequence that is timed."""
TOPIC = "tuning"


@dataclass(frozen=True)
class Tuning:
    """What was measured."""

    tiles_from: int
    """Rows, see :attr:`owngpt.kernels.packed.PackedWeight.tiles_from`; measured only for quantized weights beside AMX."""
    threads: int


def remembered() -> list[Tuning]:
    """Everything that was measured on this machine, one for each shape of model and kind of weights."""
    files = sorted(records.folder(TOPIC).glob("*.json"))
    found = [_read(records.recall(TOPIC, file.stem), torch.get_num_threads()) for file in files]
    return [tuning for tuning in found if tuning is not None]


def tune(runner: PackedRunner) -> Tuning:
    """Set up a runner that has recorded nothing yet, by what is known of this machine and shape, or by measuring it now."""
    most = torch.get_num_threads()
    key = _key(runner.model, most)
    found = _read(records.recall(TOPIC, key), most)
    if found is None:
        found = _measure(runner.model, most)
        records.keep(TOPIC, key, asdict(found))
    apply(runner, found)
    return found


def apply(runner: PackedRunner, tuning: Tuning) -> None:
    """Set up a runner that has recorded nothing yet."""
    _set_tiles_from(runner.model, tuning.tiles_from)
    runner.pool.threads = tuning.threads


def _measure(model: GPT, most: int) -> Tuning:
    tiles_from = FEW + 1
    with _shortened(model):
        counts = {most, max(1, most // 2)} if most > 2 else {most}
        threads = most if len(counts) == 1 else min(counts, key=lambda count: (_seconds(model, 1, tiles_from, count), -count))
        quantized = not packed_kinds(model) <= {"bf16", "compact"}
        if not (quantized and amx()):
            return Tuning(tiles_from_unmeasured(quantized), threads)
        for rows in reversed([rows for rows in ROWS if 2 <= rows <= FEW]):
            if _seconds(model, rows, rows + 1, threads) < _seconds(model, rows, 1, threads):
                break  # with fewer rows vector products are faster still
            tiles_from = rows
    return Tuning(tiles_from, threads)


def _seconds(model: GPT, rows: int, tiles_from: int, threads: int) -> float:
    """The fastest of some steps of the layers, without the head."""
    _set_tiles_from(model, tiles_from)
    config, pool = model.config, BufferPool(threads)
    tokens = min(BEFORE, config.context_length - 1)
    memory = PagedMemory(config, 1 + rows * 4)
    context = PagedContext(config, memory, rows, rows, 4)
    context.fill([Segment(tokens, 1, range(1 + row * 4, 4 + row * 4)) for row in range(rows)])
    token_ids, tape = torch.zeros(1, rows, dtype=torch.int64), Tape(pool)
    with tape.record(guarded=False):
        model(token_ids, context)
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        tape.run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@contextmanager
def _shortened(model: GPT) -> Iterator[None]:
    """The model with only its first layers."""
    blocks = model.blocks
    model.blocks = nn.ModuleList(list(blocks)[:LAYERS])
    try:
        yield
    finally:
        model.blocks = blocks


def _set_tiles_from(model: GPT, rows: int) -> None:
    def set_one(weight: PackedWeight) -> None:
        if weight.quantized:
            weight.tiles_from = rows

    each_packed(model, set_one)


def _key(model: GPT, threads: int) -> str:
    shape = json.dumps(model.config.to_dict(), sort_keys=True)
    kinds = ",".join(sorted(packed_kinds(model)))  # not their bytes, which compact weights have a few more or fewer of
    parts = (build.fingerprint("inference"), shape, kinds, str(threads), str(usable_cores()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _read(values: dict[str, Any], most: int) -> Tuning | None:
    tiles_from, threads = values.get("tiles_from"), values.get("threads")
    if not isinstance(tiles_from, int) or not isinstance(threads, int):
        return None
    known = NEVER <= tiles_from <= (FEW + 1 if amx() else NEVER) and 1 <= threads <= most
    return Tuning(tiles_from, threads) if known else None
