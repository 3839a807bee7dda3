"""Runs the model over parts of many sequences in one call and returns the logits after each part.

:class:`PackedRunner` drives the compiled kernels by tapes. Every call is rounded up to one of few shapes, so that its tape was
recorded before; see :mod:`owngpt.engine.layout`.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from owngpt.engine.adapters import packed_bank
from owngpt.engine.layout import ROWS, TILE, Layout, Part, Shape, arrange
from owngpt.engine.packing import each_packed
from owngpt.engine.paged import BLOCK, PagedContext, PagedMemory, numbers_of
from owngpt.formats.peft import Adapter
from owngpt.kernels.tape import BufferPool, Tape, can_record
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT

KEPT_TAPES = 24
GRAIN = 4
"""Rows that vector products take side by side."""


class Runner(Protocol):
    """What the engine needs of a way to run the model."""

    block_size: int
    """Tokens of a block."""
    blocks: int
    """Blocks there are; number 0 is not for sequences."""

    @property
    def config(self) -> GPTConfig:
        """The model's shape."""
        ...

    @property
    def grain(self) -> int:
        """Rows that the time of a call grows by."""
        ...

    def run(self, parts: Sequence[Part]) -> Tensor:
        """Logits (sum of wants_logits, V) float32 on the CPU, after the last tokens of each part, in order.

        The result is valid until the next call.
        """
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Copy keys and values of a block, for a sequence that splits."""
        ...

    def forget_block(self, block: int) -> None:
        """Overwrite a block that may hold not-a-number."""
        ...

    def load_adapter(self, name: str, adapter: Adapter) -> None:
        """Take an adapter under a name that is free, perhaps while :meth:`run` runs in another thread."""
        ...

    def unload_adapter(self, name: str) -> None:
        """Let an adapter go that no part names any more."""
        ...


class _Call:
    """A recorded shape: buffers to fill, steps to run, logits to read."""

    def __init__(self, runner: PackedRunner, shape: Shape, *, guarded: bool) -> None:
        model = runner.model
        wanted = None if shape.rows == shape.tokens else max(shape.rows, 1)
        drop = wanted is not None and not shape.spans  # an adapter's rows lie side by side among all rows, not among the wanted
        self.context = PagedContext(
            model.config, runner.memory, shape.tokens, shape.segments, runner.table, wanted=wanted, drop=drop
        )
        self.token_ids = torch.zeros(1, shape.tokens, dtype=torch.int64)
        self.all_rows = list(range(shape.rows))
        self._ids = numbers_of(self.token_ids)
        self.tape = Tape(runner.pool)
        self.logits = torch.empty(0)
        with runner.adapters.use(shape.spans), self.tape.record(guarded=guarded):
            hidden = model(self.token_ids, self.context)
            if shape.rows:
                hidden = hidden if wanted is None or drop else self.context.gathered(hidden)
                self.logits = (model.embedding.project(hidden) if model.output_head is None else model.output_head(hidden))[0]

    def fill(self, layout: Layout) -> list[int]:
        """Say what the next run is about. :returns: the rows of :attr:`logits` that are wanted."""
        self._ids[:] = array("q", layout.token_ids)
        self.context.fill(layout.segments, layout.wanted)
        return layout.wanted if len(self.all_rows) == len(self._ids) else self.all_rows[: len(layout.wanted)]


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
        self._calls: OrderedDict[Shape, _Call] = OrderedDict()
        self.adapters = packed_bank(model)
        self._bias = None if model.head_bias is None else model.head_bias.detach().float()
        for tables in (model.rotary, model.local_rotary):
            tables.reach(model.config.context_length, torch.device("cpu"))

    @property
    def config(self) -> GPTConfig:
        """See :class:`Runner`."""
        return self.model.config

    @property
    def grain(self) -> int:
        """See :class:`Runner`."""
        on_tiles: set[bool] = set()
        each_packed(self.model.blocks, lambda weight: on_tiles.add(weight.on_tiles(ROWS[-1])))
        return TILE if True in on_tiles else GRAIN

    def run(self, parts: Sequence[Part]) -> Tensor:
        """See :class:`Runner`."""
        layout = arrange(parts)
        with self.adapters.lock:
            call = self._call(layout.shape)
            wanted = call.fill(layout)
            call.tape.run()
        logits = call.logits if wanted == call.all_rows else call.logits[wanted]
        return logits if self._bias is None or not layout.wanted else logits + self._bias

    def copy_block(self, source: int, target: int) -> None:
        """See :class:`Runner`."""
        self.memory.keys[:, target] = self.memory.keys[:, source]
        self.memory.values[:, target] = self.memory.values[:, source]

    def forget_block(self, block: int) -> None:
        """See :class:`Runner`."""
        self.memory.forget(block)

    def load_adapter(self, name: str, adapter: Adapter) -> None:
        """See :class:`Runner`."""
        self.adapters.load(name, adapter)

    def unload_adapter(self, name: str) -> None:
        """See :class:`Runner`."""
        with self.adapters.lock:  # its tapes hold addresses of what goes
            for shape in [shape for shape in self._calls if any(span.adapter == name for span in shape.spans)]:
                del self._calls[shape]
        self.adapters.unload(name)

    def _call(self, shape: Shape) -> _Call:
        call = self._calls.get(shape)
        if call is None:
            call = self._calls[shape] = _Call(self, shape, guarded=not self._calls)
            if len(self._calls) > KEPT_TAPES:
                self._calls.popitem(last=False)
        self._calls.move_to_end(shape)
        return call
