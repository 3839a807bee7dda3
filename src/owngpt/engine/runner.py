"""Runs the model over parts of many sequences in one call and returns the logits after each part.

:class:`PackedRunner` drives the compiled kernels by tapes. Every call is rounded up to one of few shapes, so that its tape was
recorded before: what is added belongs to a segment of its own whose keys and values go to block 0, which no sequence is given.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from owngpt.engine.paged import BLOCK, PagedContext, PagedMemory, Segment
from owngpt.kernels.tape import BufferPool, Tape, can_record
from owngpt.model.gpt import GPT

SPARE_BLOCK = 0
"""Takes what is computed only to fill up a shape."""
ROWS = (1, 2, 3, 4, 8, *range(16, 65, 16))
"""Numbers of sequences a decoding call is rounded up to; beyond, multiples of 16."""
TOKENS = 16
"""Numbers of tokens of a call with prompts are rounded up to multiples of this."""
KEPT_TAPES = 24


@dataclass(frozen=True)
class Part:
    """The next tokens of one sequence."""

    token_ids: Sequence[int]
    before: int
    """Tokens that its blocks hold already."""
    blocks: Sequence[int]
    """Its blocks, enough for before + len(token_ids) tokens."""
    wants_logits: bool = True
    """False for a piece of a prompt that is not its last."""


class Runner(Protocol):
    """What the engine needs of a way to run the model."""

    block_size: int
    """Tokens of a block."""
    blocks: int
    """Blocks there are; number 0 is not for sequences."""

    def run(self, parts: Sequence[Part]) -> Tensor:
        """Logits (number of parts that want them, V) float32 on the CPU, after the last token of each, in order.

        The result is valid until the next call.
        """
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Copy keys and values of a block, for a sequence that splits."""
        ...

    def forget_block(self, block: int) -> None:
        """Overwrite a block that may hold not-a-number."""
        ...


class _Call:
    """A recorded shape: buffers to fill, steps to run, logits to read."""

    def __init__(self, runner: PackedRunner, tokens: int, segments: int, logits: bool, *, guarded: bool) -> None:
        model, config = runner.model, runner.model.config
        self.context = PagedContext(config, runner.memory, tokens, segments, runner.table)
        self.token_ids = torch.zeros(1, tokens, dtype=torch.int64)
        self.last_rows = torch.zeros(segments, dtype=torch.int32)
        self.tape = Tape(runner.pool)
        self.logits = torch.empty(0)
        with self.tape.record(guarded=guarded):
            hidden = model(self.token_ids, self.context)
            if logits:
                self._record_head(model, hidden, segments)

    def _record_head(self, model: GPT, hidden: Tensor, segments: int) -> None:
        width = hidden.shape[-1]
        if hidden.shape[1] != segments:
            last = self.tape.empty(1, segments, width)
            self.tape.step("gather", hidden, width, self.last_rows, segments, last)
            hidden = last
        self.logits = (model.embedding.project(hidden) if model.output_head is None else model.output_head(hidden))[0]


class PackedRunner:
    """The compiled kernels over packed weights; see :func:`owngpt.engine.packing.recordable` for where they run."""

    block_size = BLOCK

    def __init__(self, model: GPT, blocks: int) -> None:
        """
        :param model: packed by :func:`owngpt.engine.packing.pack_model`.
        :param blocks: of 32 tokens; block 0 is kept for filling up.
        """
        assert can_record(), "the kernels do not run here; ask packing.recordable first"
        self.model, self.blocks = model.eval(), blocks
        self.memory = PagedMemory(model.config, blocks)
        self.table = -(-model.config.context_length // BLOCK)
        self.pool = BufferPool()
        self._calls: OrderedDict[tuple[int, int, bool], _Call] = OrderedDict()
        for tables in (model.rotary, model.local_rotary):
            tables.reach(model.config.context_length, torch.device("cpu"))

    def run(self, parts: Sequence[Part]) -> Tensor:
        """See :class:`Runner`."""
        decoding = all(len(part.token_ids) == 1 for part in parts)
        segments = [Segment(part.before, len(part.token_ids), part.blocks) for part in parts]
        token_ids = [token_id for part in parts for token_id in part.token_ids]
        missing = (_rounded_rows(len(parts)) if decoding else -(-len(token_ids) // TOKENS) * TOKENS) - len(token_ids)
        segments += (
            [Segment(0, 1, (SPARE_BLOCK,))] * missing if decoding else [Segment(0, missing, (SPARE_BLOCK,))] * bool(missing)
        )
        token_ids += [0] * missing
        wanted = [index for index, part in enumerate(parts) if part.wants_logits]
        call = self._call(len(token_ids), len(segments), bool(wanted))
        call.token_ids.copy_(torch.tensor([token_ids]))
        call.context.fill(segments)
        ends = torch.tensor([segment.count for segment in segments]).cumsum(0) - 1
        call.last_rows.copy_(ends)
        call.tape.run()
        logits = call.logits if len(wanted) == len(call.logits) else call.logits[wanted]
        bias = self.model.head_bias
        return logits if bias is None else logits + bias.float()

    def copy_block(self, source: int, target: int) -> None:
        """See :class:`Runner`."""
        self.memory.keys[:, target] = self.memory.keys[:, source]
        self.memory.values[:, target] = self.memory.values[:, source]

    def forget_block(self, block: int) -> None:
        """See :class:`Runner`."""
        self.memory.forget(block)

    def _call(self, tokens: int, segments: int, logits: bool) -> _Call:
        key = (tokens, segments, logits)
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = _Call(self, tokens, segments, logits, guarded=not self._calls)
            if len(self._calls) > KEPT_TAPES:
                self._calls.popitem(last=False)
        self._calls.move_to_end(key)
        return call


def _rounded_rows(rows: int) -> int:
    return next((size for size in ROWS if size >= rows), -(-rows // 16) * 16)
