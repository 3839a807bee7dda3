"""From a model to an engine that fits this machine: which kernels, which weights, how much memory for the cache."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch

from owngpt.engine import quality
from owngpt.engine.engine import Engine
from owngpt.engine.graph_runner import GraphRunner
from owngpt.engine.packing import Packer, pack_model, packed_bytes, packed_kinds, recordable
from owngpt.engine.paged import BLOCK, PagedMemory
from owngpt.engine.runner import PackedRunner
from owngpt.engine.torch_runner import TorchRunner
from owngpt.engine.tuning import tune
from owngpt.errors import UsageError
from owngpt.formats.folder import open_model
from owngpt.kernels.machine import available_memory
from owngpt.kernels.packed import Kind
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer

Quantize = Literal["auto", "none", "int8", "int4"]
QUANTIZE: tuple[Quantize, ...] = ("auto", "none", "int8", "int4")
USUAL_TOKENS = 1024
"""Length of text for which the cache has room, times ``most_rows``, where nobody says otherwise."""
MEMORY_SHARE = 0.3
"""Of the memory that is free, at most, for the cache; only what is written to is ever taken."""
MEBIBYTE = 1 << 20
UNMEASURED = "how well they quantize is measured when the engine is idle"
PAUSE = 2.0
"""Seconds without work after which an engine counts as idle."""


@dataclass(frozen=True)
class Setup:
    """What an engine runs on, and why."""

    runner: Literal["packed", "torch"]
    weights: str
    """bf16, int8, int4, or a data type of torch."""
    reason: str
    weight_bytes: int
    memory_bytes: int
    """Of the cache at most."""
    memory_tokens: int
    """Tokens of all texts together that the cache has room for."""
    threads: int
    compact: bool = False
    """bf16 weights are kept in 12 bits each, without loss."""

    def __str__(self) -> str:
        kernels = "compiled kernels" if self.runner == "packed" else "PyTorch"
        weights = f"{self.weights} weights" + (" in 12 bits each without loss" if self.compact else "")
        return (
            f"{kernels}, {weights} ({self.weight_bytes / MEBIBYTE:,.0f} MiB; {self.reason}), "
            f"{self.threads} threads, cache for {self.memory_tokens:,} tokens ({self.memory_bytes / MEBIBYTE:,.0f} MiB at most)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class PreparedEngine(Engine):
    """An engine that knows what it runs on, and learns in idle times what it could run on."""

    def __init__(self, runner: PackedRunner | TorchRunner, tokenizer: Tokenizer, setup: Setup, most_rows: int) -> None:
        super().__init__(runner, tokenizer, context_length=runner.model.config.context_length, most_rows=most_rows)
        self.setup, self._model = setup, runner.model
        self._closed = threading.Event()
        self._learner: threading.Thread | None = None

    @property
    def model_config(self) -> GPTConfig:
        """Shape of the model that runs."""
        return self._model.config

    def measure_when_idle(self, key: str) -> None:
        """Measure how well the weights quantize, for the next time that they are opened, while there are no requests."""
        self._learner = threading.Thread(target=self._learn, args=(key,), name="owngpt-quality", daemon=True)
        self._learner.start()

    def close(self) -> None:
        """See :meth:`Engine.close`."""
        self._closed.set()
        super().close()
        if self._learner is not None and self._learner is not threading.current_thread():
            self._learner.join()

    def _learn(self, key: str) -> None:
        try:
            quality.remember(key, quality.measure(self._model, self.tokenizer, wait=self._wait_until_idle))
        except _ClosedError:
            return

    def _wait_until_idle(self) -> None:
        pause = 0.0
        while True:
            if self._closed.wait(pause):
                raise _ClosedError
            steps = self.stats().steps
            if steps == self._steps_seen:
                return
            self._steps_seen, pause = steps, PAUSE

    _steps_seen = -1


class _ClosedError(Exception):
    """The engine was closed while something was measured."""


@dataclass(frozen=True)
class LoadedEngine:
    """An engine from a path, and what else the path holds."""

    engine: PreparedEngine
    tokenizer: Tokenizer
    generation: dict[str, Any]
    """Content of generation_config.json."""
    config: GPTConfig


def load_engine(
    path: str | Path,
    *,
    quantize: Quantize = "auto",
    dtype: torch.dtype | None = None,
    memory: int | None = None,
    most_rows: int = 64,
    adapter: str | Path | None = None,
) -> LoadedEngine:
    """Open a model for inference on the CPU. Weights are packed as they are read; none is held twice.

    :param path: a model folder, a GGUF file, or an adapter's folder.
    :param quantize: see :func:`open_engine`.
    :param dtype: float32 asks for PyTorch's exact float32; otherwise the fastest way is taken.
    :param memory: see :func:`open_engine`.
    :param most_rows: see :func:`open_engine`.
    :param adapter: merged into the weights, see :func:`owngpt.formats.folder.open_model`.
    :raises ModelFolderError: see :func:`owngpt.formats.folder.open_model`.
    """
    _check(quantize, memory, most_rows)
    path, packer, hindrance, reason = Path(path), None, "float32 was asked for", ""
    key = ""
    exact = dtype == torch.float32 and quantize in ("auto", "none")

    def prepare(config: GPTConfig) -> Packer | None:
        nonlocal packer, hindrance, reason, key
        found = hindrance if exact else recordable(config)
        if found is not None:
            hindrance = found
            return None
        key = quality.file_key(path, None if adapter is None else Path(adapter))
        kind, reason = _kind(quantize, key)
        packer = Packer(config, kind, keep_groups=quantize == "auto")
        return packer

    model, tokenizer, generation = open_model(path, dtype=dtype if exact else None, prepare=prepare, adapter=adapter)
    if packer is None:
        engine = _torch_engine(model, tokenizer, hindrance, quantize, memory, most_rows)
    else:
        if packer.kind != "bf16" and reason == UNMEASURED:
            reason = "as the file has them"
        engine = _packed_engine(packer.install(model), tokenizer, packer.kind, reason, key, memory, most_rows)
    return LoadedEngine(engine, tokenizer, generation, engine.model_config)


def open_engine(
    model: GPT, tokenizer: Tokenizer, *, quantize: Quantize = "auto", memory: int | None = None, most_rows: int = 64
) -> PreparedEngine:
    """An engine over a model in memory, on any device. Where packed kernels run, the model's own weights are replaced.

    :param quantize: none keeps what the model has: float32 stays exact; int8 and int4 make the weights smaller and faster;
        auto takes the fastest whose perplexity on a built-in text rises by less than one percent.
    :param memory: bytes for the cache; by default enough for ``most_rows`` texts of usual length, within a part of what is free.
    :param most_rows: texts that are written side by side.
    :raises UsageError: a value is out of range, or this machine has no kernels for the weights that are asked for.
    """
    _check(quantize, memory, most_rows)
    weight = model.embedding.weight
    hindrance = recordable(model)
    if weight.device.type != "cpu":
        hindrance = f"the model is on {weight.device}"
    elif weight.dtype == torch.float32 and quantize == "none":
        hindrance = "its weights are float32 and stay so"
    if hindrance is not None:
        return _torch_engine(model, tokenizer, hindrance, quantize, memory, most_rows)
    key = quality.model_key(model)
    kind, reason = _kind(quantize, key)
    return _packed_engine(pack_model(model, kind), tokenizer, kind, reason, key, memory, most_rows)


def _check(quantize: str, memory: int | None, most_rows: int) -> None:
    if quantize not in QUANTIZE:
        raise UsageError(f"quantize is {quantize!r}; choose {', '.join(QUANTIZE)}")
    if memory is not None and memory < 1:
        raise UsageError(f"memory is {memory} bytes; it must be at least 1")
    if not 1 <= most_rows <= 4096:
        raise UsageError(f"most_rows is {most_rows}; it must be from 1 to 4096")


def _kind(quantize: Quantize, key: str) -> tuple[Kind, str]:
    """The kind of weights, and why."""
    if quantize == "none":
        return "bf16", "not quantized, as asked"
    if quantize != "auto":
        return cast(Kind, quantize), "as asked"
    known = quality.recall(key)
    if known is None:
        return "bf16", UNMEASURED
    return known.chosen, known.reason


def _packed_engine(
    model: GPT, tokenizer: Tokenizer, kind: Kind, reason: str, key: str, memory: int | None, most_rows: int
) -> PreparedEngine:
    per_block = PagedMemory.bytes_per_block(model.config)
    blocks = _blocks(model.config, per_block, memory, most_rows)
    runner = PackedRunner(model, blocks)
    tune(runner)
    setup = Setup(
        "packed", kind, reason, packed_bytes(model), blocks * per_block, (blocks - 1) * BLOCK, torch.get_num_threads(),
        compact=kind == "bf16" and "compact" in packed_kinds(model),
    )  # fmt: skip
    engine = PreparedEngine(runner, tokenizer, setup, most_rows)
    if reason == UNMEASURED:
        engine.measure_when_idle(key)
    return engine


def _torch_engine(
    model: GPT, tokenizer: Tokenizer, hindrance: str, quantize: Quantize, memory: int | None, most_rows: int
) -> PreparedEngine:
    if quantize in ("int8", "int4"):
        raise UsageError(f"{quantize} weights cannot run here: {hindrance}; use quantize none or auto")
    weight, config = model.embedding.weight, model.config
    per_block = 2 * config.layers * config.key_value_heads * BLOCK * config.head_size * weight.element_size()
    blocks = _blocks(config, per_block, memory, most_rows)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    setup = Setup(
        "torch", str(weight.dtype).removeprefix("torch."), hindrance, size, blocks * per_block, (blocks - 1) * BLOCK,
        torch.get_num_threads(),
    )  # fmt: skip
    runner = GraphRunner(model, blocks) if weight.device.type == "cuda" else TorchRunner(model, blocks)
    return PreparedEngine(runner, tokenizer, setup, most_rows)


def _blocks(config: GPTConfig, per_block: int, memory: int | None, most_rows: int) -> int:
    """Blocks for the cache, the spare one included.

    :raises UsageError: the memory that was given does not hold two blocks.
    """
    if memory is not None:
        if memory < 2 * per_block:
            raise UsageError(f"memory is {memory:,} bytes; a cache of two blocks takes {2 * per_block:,}: give at least that")
        return memory // per_block
    whole = -(-config.context_length // BLOCK)
    usual = most_rows * min(whole, -(-USUAL_TOKENS // BLOCK))
    affordable = int(MEMORY_SHARE * available_memory()) // per_block
    return 1 + max(1, min(max(usual, whole), affordable))
