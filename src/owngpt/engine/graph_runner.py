"""On a GPU, steps in which every text writes one token are CUDA graphs: one launch instead of some hundred.

A graph is recorded for a size of batch and a reach of the cache, both rounded up to one of few, and replayed over buffers that
stay where they are. What fills a batch up writes to block 0, which no text is given. A graph that does not give the logits of
the plain forward pass is not used.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from owngpt.engine.layout import SPARE_BLOCK, Part
from owngpt.engine.torch_runner import BLOCK, TorchRunner
from owngpt.kernels.attention import attention_with_sinks
from owngpt.model.gpt import GPT

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Texts of a step, rounded up."""
FEWEST_BLOCKS = 8
"""Reach of the smallest graphs; that of the others doubles."""
KEPT_GRAPHS = 24
TOLERANCE = 0.05
"""Of the largest logit, by which a graph may differ from the plain forward pass: other sums in bfloat16, nothing more."""


class GraphRunner(TorchRunner):
    """See :class:`owngpt.engine.runner.Runner`. On a CPU its steps have the same buffers and are computed without graphs."""

    def __init__(self, model: GPT, blocks: int) -> None:
        """:param blocks: see :class:`TorchRunner`."""
        super().__init__(model, blocks)
        self._steps: OrderedDict[tuple[int, int], DecodingStep] = OrderedDict()
        self._usable = not (model.config.experts or model.config.turns_by_length)

    def run(self, parts: Sequence[Part]) -> Tensor:
        """See :class:`owngpt.engine.runner.Runner`."""
        if not self._usable or not parts or len(parts) > SIZES[-1] or not all(map(_writes, parts)):
            return super().run(parts)
        with torch.inference_mode(), self.adapters.lock:
            size = next(size for size in SIZES if size >= len(parts))
            reach = _reach(max(part.before for part in parts) // BLOCK + 1, self.blocks)
            step = self._steps.get((size, reach))
            if step is not None:
                self._steps.move_to_end((size, reach))
                return step.run(parts)
        expected = super().run(parts)
        with torch.inference_mode(), self.adapters.lock:
            self._record(size, reach, parts, expected)
        return expected

    def _record(self, size: int, reach: int, parts: Sequence[Part], expected: Tensor) -> None:
        try:
            step = DecodingStep(self.model, self.keys, self.values, size, reach)
            found = step.run(parts)
        except RuntimeError as error:  # what cannot be recorded, or no memory for it
            self._give_up(str(error).splitlines()[0])
            return
        if not torch.allclose(found, expected, rtol=0.0, atol=TOLERANCE * float(expected.abs().max()) + 1e-6):
            self._give_up("their logits are others")
            return
        self._steps[size, reach] = step
        if len(self._steps) > KEPT_GRAPHS:
            self._steps.popitem(last=False)

    def _give_up(self, reason: str) -> None:
        self._usable = False
        self._steps.clear()
        warnings.warn(f"CUDA graphs are off, so decoding is slower: {reason}", RuntimeWarning, stacklevel=2)


class DecodingStep:
    """One token of each of at most ``size`` texts, over at most ``reach`` blocks of each."""

    def __init__(self, model: GPT, keys: Tensor, values: Tensor, size: int, reach: int) -> None:
        """
        :param keys: of the runner, (layers, slots, G, D); so ``values``.
        """
        self._model, self._size, self._reach = model, size, reach
        # Of each row: token, position, the slot it is written to, how many tokens it sees, and its blocks.
        self._staged = torch.zeros(size, 4 + reach, dtype=torch.int64, pin_memory=keys.is_cuda)
        self._numbers = self._staged.to(keys.device)
        self._context = _StaticContext(self._numbers, keys, values, reach, model.config.context_length)
        self._replay = self._recorded() if keys.is_cuda else self._forward

    def run(self, parts: Sequence[Part]) -> Tensor:
        """(len(parts), V) float32 on the CPU."""
        rows = self._staged.numpy()
        rows[:] = SPARE_BLOCK
        rows[:, 3] = 1
        for row, part in zip(rows, parts, strict=False):
            blocks = part.blocks[: part.before // BLOCK + 1]
            row[:4] = part.token_ids[0], part.before, blocks[-1] * BLOCK + part.before % BLOCK, part.before + 1
            row[4 : 4 + len(blocks)] = blocks
        self._numbers.copy_(self._staged, non_blocking=True)
        return self._replay()[: len(parts)].cpu()

    def _forward(self) -> Tensor:
        hidden = self._model(self._numbers[:, 0][None], self._context)[0]
        return self._model.head(hidden)

    def _recorded(self) -> Callable[[], Tensor]:
        """The forward pass as a graph, after some runs that choose its kernels and make what is made once."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                self._forward()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._forward()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay


class _StaticContext:
    """The attention context of a decoding step, whose numbers are only looked at on the device."""

    def __init__(self, numbers: Tensor, keys: Tensor, values: Tensor, reach: int, context_length: int) -> None:
        """:param numbers: (R, 4 + reach) int64, see :class:`DecodingStep`."""
        self._numbers, self._keys, self._values = numbers, keys, values
        self._offsets = torch.arange(BLOCK, device=keys.device)
        self._index = torch.arange(reach * BLOCK, device=keys.device)
        self.reach = context_length
        """Positions are below this: nobody needs to look at them on the CPU."""

    def positions(self, time: int) -> Tensor:
        """(1, R) int64"""
        assert time == len(self._numbers)
        return self._numbers[:, 1][None]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, window: int, scale: float, sinks: Tensor | None = None
    ) -> Tensor:
        """Remember key and value (1, R, G, D), attend with query (1, R, H, D) → (1, R, H, D)."""
        keys, values, new = self._keys[layer], self._values[layer], self._numbers[:, 2]
        keys[new], values[new] = key[0], value[0]
        slots = (self._numbers[:, 4:, None] * BLOCK + self._offsets).flatten(1)  # (R, S)
        lengths = self._numbers[:, 3, None]
        visible = self._index < lengths
        if window:
            visible = visible & (self._index >= lengths - window)
        return _one_token_each(query[0], keys[slots], values[slots], visible, scale, sinks)[None]

    def going_on(self, layer: int, x: Tensor) -> Tensor:
        """All tokens: each is followed by another."""
        return x


def _one_token_each(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scale: float, sinks: Tensor | None) -> Tensor:
    """query (R, H, D), keys and values (R, S, G, D), visible (R, S) → (R, H, D).

    The query heads that share a key head stand side by side where tokens would: so the fused attention takes them as they are.
    """
    rows, heads, size = query.shape
    groups = keys.shape[2]
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    if sinks is not None:
        return attention_with_sinks(query[:, None], keys, values, sinks, visible=visible[:, None, None], scale=scale).view(
            rows, heads, size
        )
    shared = query.view(rows, groups, heads // groups, size)
    mask = visible[:, None, None].expand(rows, groups, heads // groups, -1)
    return scaled_dot_product_attention(shared, keys, values, attn_mask=mask, scale=scale).reshape(rows, heads, size)


def _writes(part: Part) -> bool:
    return len(part.token_ids) == 1 and int(part.wants_logits) == 1 and part.adapter is None


def _reach(blocks: int, most: int) -> int:
    """Blocks, rounded up to a power of two, but no more than there are."""
    reach = FEWEST_BLOCKS
    while reach < blocks:
        reach *= 2
    return max(min(reach, most), blocks)
