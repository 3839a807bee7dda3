"""LoRA adapters (arXiv 2106.09685) over a model's linear layers: each row of a call is computed with its own.

y = x W^T + (x down^T) up^T for the rows of an adapter. The product is added to a layer's output by a hook, so that the forward
pass stays the one in ``model/``, whatever kind of layer it runs on; rows without an adapter compute nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from owngpt.engine.packing import PackedGatedMLP
from owngpt.errors import UsageError
from owngpt.formats.peft import Adapter, LowRankUpdate
from owngpt.kernels import packed, tape
from owngpt.kernels.packed import PackedWeight
from owngpt.model.gpt import GPT

RANKS = 32
"""The rank is filled up with zeros to a multiple of this: whole tiles."""


@dataclass(frozen=True)
class Span:
    """Rows of a call that one adapter is for."""

    adapter: str
    start: int
    count: int


class AdapterBank:
    """The adapters of a runner, ready for its device and kernels.

    A runner holds :attr:`lock` during each call, so that none is loaded or let go meanwhile.
    """

    def __init__(self, model: GPT, prepare: Callable[[LowRankUpdate], Any], add_product: Callable[[Tensor, Tensor, Any], None]):
        """
        :param prepare: makes of an update what ``add_product`` takes.
        :param add_product: adds to the output (n, out) the product of the input (n, in) and a prepared update.
        """
        self._model, self._prepare, self._add_product = model, prepare, add_product
        self._prepared: dict[str, dict[str, Any]] = {}
        self._hooked: set[str] = set()
        self._fused = [module for module in model.modules() if isinstance(module, PackedGatedMLP)]
        self._spans: Sequence[Span] = ()
        self.lock = Lock()

    def load(self, name: str, adapter: Adapter) -> None:
        """Take an adapter under a name that is free.

        :raises UsageError: it changes the lengths of weights (DoRA), which cannot be added to what a layer gives.
        """
        assert name not in self._prepared
        if any(update.magnitude is not None for update in adapter.values()):
            raise UsageError(
                f"the adapter {name} is a DoRA adapter, which cannot run beside others; merge it into a model of its own"
            )
        prepared = {layer: self._prepare(update) for layer, update in adapter.items()}
        with self.lock:
            for layer in set(prepared) - self._hooked:
                self._model.get_submodule(layer).register_forward_hook(partial(self._hook, layer))
                self._hooked.add(layer)
            self._prepared[name] = prepared

    def unload(self, name: str) -> None:
        """Let an adapter go; its name is free again."""
        with self.lock:
            del self._prepared[name]

    @contextmanager
    def use(self, spans: Sequence[Span]) -> Iterator[None]:
        """A forward pass inside computes these rows with these adapters."""
        self._begin(spans)
        try:
            yield
        finally:
            self._begin(())

    def _begin(self, spans: Sequence[Span]) -> None:
        self._spans = spans
        for module in self._fused:  # as one step they would pass by the hooks
            module.apart = bool(spans)

    def _hook(self, layer: str, _: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        """After a linear layer: input (1, N, in), output (1, N, out), which it adds to."""
        for span in self._spans:
            update = self._prepared[span.adapter].get(layer)
            if update is not None:
                end = span.start + span.count
                self._add_product(output[0, span.start : end], inputs[0][0, span.start : end], update)


def plain_bank(model: GPT) -> AdapterBank:
    """Adapters for a model whose layers compute with PyTorch, in its data type and on its device."""
    like = model.embedding.weight

    def prepare(update: LowRankUpdate) -> LowRankUpdate:
        return LowRankUpdate(update.down.to(like), update.up.to(like))

    def add_product(output: Tensor, x: Tensor, update: LowRankUpdate) -> None:
        output += functional.linear(functional.linear(x, update.down), update.up)

    return AdapterBank(model, prepare, add_product)


@dataclass(frozen=True)
class _PackedUpdate:
    down: PackedWeight
    up: PackedWeight


def packed_bank(model: GPT) -> AdapterBank:
    """Adapters for packed layers: two more products and a sum on the tape, in bfloat16."""
    return AdapterBank(model, _packed, _record_product)


def _packed(update: LowRankUpdate) -> _PackedUpdate:
    missing = -len(update.down) % RANKS
    down, up = functional.pad(update.down, (0, 0, 0, missing)), functional.pad(update.up, (0, missing))
    return _PackedUpdate(packed.pack(down, "bf16"), packed.pack(up, "bf16"))


def _record_product(output: Tensor, x: Tensor, update: _PackedUpdate) -> None:
    active = tape.recording()
    assert active is not None
    product = packed.linear(packed.linear(x, update.down, None), update.up, None)
    active.step("add", output, product, output, *output.shape)


def spans_of(adapters: Sequence[str | None], counts: Sequence[int]) -> list[Span]:
    """The spans of consecutive parts of a call: each part's adapter and number of rows."""
    spans: list[Span] = []
    start = 0
    for adapter, count in zip(adapters, counts, strict=True):
        last = spans[-1] if spans else None
        if adapter is not None and last is not None and last.adapter == adapter and last.start + last.count == start:
            spans[-1] = Span(adapter, last.start, last.count + count)
        elif adapter is not None:
            spans.append(Span(adapter, start, count))
        start += count
    return spans
