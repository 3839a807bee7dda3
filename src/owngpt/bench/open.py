"""Open our engine for a measurement, as everybody else opens it."""

from __future__ import annotations

from pathlib import Path

import torch

from owngpt.engine.load import PreparedEngine, Quantize, load_engine
from owngpt.engine.packing import PackedEmbedding, PackedLinear
from owngpt.engine.runner import PackedRunner
from owngpt.engine.torch_runner import TorchRunner

QUANTIZE: dict[str, Quantize] = {"bf16": "none", "float32": "none", "int8": "int8", "int4": "int4"}
"""Our names of weights → the engine's option."""


def open_weights(path: str | Path, weights: str, most_rows: int) -> PreparedEngine:
    """An engine over a model.

    :param weights: bf16, int8 or int4; float32 for the exact path of PyTorch.
    :raises UsageError: this machine has no kernels for such weights.
    """
    dtype = torch.float32 if weights == "float32" else None
    return load_engine(path, quantize=QUANTIZE[weights], dtype=dtype, most_rows=most_rows).engine


def weight_bytes(engine: PreparedEngine) -> int:
    """What decoding one token reads of the weights: all but an embedding that is not the head as well."""
    runner = engine.runner
    assert isinstance(runner, PackedRunner | TorchRunner)
    tied, table = runner.model.output_head is None, runner.model.embedding
    packed = [module for module in runner.model.modules() if isinstance(module, PackedLinear | PackedEmbedding)]
    if packed:
        return sum(module.packed.bytes for module in packed if tied or isinstance(module, PackedLinear))
    total = sum(parameter.numel() * parameter.element_size() for parameter in runner.model.parameters())
    return total - (0 if tied else table.weight.numel() * table.weight.element_size())
