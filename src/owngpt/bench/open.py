"""Open our engine on a model for a measurement."""

from __future__ import annotations

from typing import cast

import torch

from owngpt.bench.side import SideSpec
from owngpt.engine.engine import Engine
from owngpt.engine.packing import PackedEmbedding, PackedLinear, pack_model, recordable
from owngpt.engine.paged import BLOCK
from owngpt.engine.runner import PackedRunner, Runner
from owngpt.engine.torch_runner import TorchRunner
from owngpt.formats.folder import open_model
from owngpt.kernels.packed import Kind
from owngpt.model.gpt import GPT


def open_side(spec: SideSpec) -> tuple[Engine, str]:
    """An engine with room for what is asked of it, and what it runs on, in words."""
    torch.set_num_threads(spec.threads)
    model, tokenizer, _ = open_model(spec.path, dtype=torch.float32 if spec.weights == "float32" else None)
    runner, described = open_runner(model, spec.weights, -(-spec.memory // BLOCK) + 2 * spec.most_requests)
    engine = Engine(runner, tokenizer, context_length=model.config.context_length, most_rows=spec.most_requests)
    return engine, described


def open_runner(model: GPT, weights: str, blocks: int) -> tuple[Runner, str]:
    """The compiled kernels where they run, else PyTorch.

    :param weights: bf16, int8 or int4; float32 for the exact path.
    :param blocks: of 32 tokens of cache.
    """
    reason = "float32 is exact" if weights == "float32" else recordable(model)
    if reason is None:
        return PackedRunner(pack_model(model, cast(Kind, weights)), blocks + 1), f"packed {weights}"
    return TorchRunner(model, blocks + 1), f"PyTorch in {str(model.embedding.weight.dtype)[6:]}: {reason}"


def weight_bytes(engine: Engine) -> int:
    """What decoding one token reads of the weights: all but an embedding that is not the head as well."""
    model = cast(GPT, engine.runner.model)  # type: ignore[attr-defined]
    packed = [module for module in model.modules() if isinstance(module, PackedLinear | PackedEmbedding)]
    if packed:
        tied = model.output_head is None
        return sum(module.packed.bytes for module in packed if tied or isinstance(module, PackedLinear))
    total = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    table = model.embedding.weight
    return total - (0 if model.output_head is None else table.numel() * table.element_size())
