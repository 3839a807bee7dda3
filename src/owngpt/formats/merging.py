"""Adapters put into a model's own weights: W + up @ down, summed in float32 and rounded once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from owngpt.formats.peft import Adapter
from owngpt.formats.weights import GroupedTensor, Take
from owngpt.model.gpt import GPT


@torch.no_grad()
def merge_adapter(model: GPT, adapter: Adapter) -> None:
    """Put an adapter into a model, in place; sums are rounded once, to the weight's type."""
    for layer, update in adapter.items():
        weight = model.get_submodule(layer).weight
        assert isinstance(weight, Tensor)
        weight.copy_(update.merged(weight))


def merging(take: Take, adapters: Sequence[Adapter]) -> Take:
    """A :data:`Take` that hands on to another what it is given, with the adapters put in one after the other."""

    def taken(name: str, tensor: Tensor | GroupedTensor) -> Tensor:
        layer = name.removesuffix(".weight")
        updates = [adapter[layer] for adapter in adapters if layer in adapter]
        if not updates:
            return take(name, tensor)
        weight = tensor.floats() if isinstance(tensor, GroupedTensor) else tensor
        for update in updates:
            weight = update.merged(weight)
        return take(name, weight)

    return taken
