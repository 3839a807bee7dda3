"""Weights that are not trained, packed once for the products of a training step: forward, and the gradient of the input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from owngpt.kernels import library
from owngpt.kernels.linear import product

EDGE = 32
"""Outputs and inputs of a block of tiles."""


@dataclass(frozen=True)
class FrozenWeight:
    """A weight (outputs, inputs) of bfloat16 in the two orders that source/frozen.c reads."""

    outputs: int
    inputs: int
    forward: Tensor
    """Panels of 32 outputs with all inputs."""
    backward: Tensor
    """Panels of 32 inputs with all outputs."""

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)"""
        return self.outputs, self.inputs

    @property
    def dtype(self) -> torch.dtype:
        """Of the weight."""
        return self.forward.dtype

    def __len__(self) -> int:
        return self.outputs

    @property
    def bytes(self) -> int:
        """Memory of both."""
        return (self.forward.numel() + self.backward.numel()) * self.forward.element_size()

    def rows(self, index: Tensor) -> Tensor:
        """(n, inputs) bfloat16: the outputs with these numbers (n,)."""
        tiles = self.forward.view(-(-self.outputs // EDGE), -(-self.inputs // EDGE), 2, 16, 16, 2)
        panel, place = index // EDGE, index % EDGE
        return tiles[panel, :, place // 16, :, place % 16].reshape(len(index), -1)[:, : self.inputs]

    def unpacked(self) -> Tensor:
        """(outputs, inputs) bfloat16, the very weight."""
        panels, steps = -(-self.outputs // EDGE), -(-self.inputs // EDGE)
        # A pair of tiles: 16 pairs of inputs x 16 outputs x 2, for outputs 0-15 and 16-31.
        tiles = self.forward.view(panels, steps, 2, 16, 16, 2).permute(0, 2, 4, 1, 3, 5)
        return tiles.reshape(panels * EDGE, steps * EDGE)[: self.outputs, : self.inputs].contiguous()


def can_freeze(weight: Tensor) -> bool:
    """Whether this machine's kernels take the weight."""
    return library.available(weight) and library.has_tiles()


def freeze(weight: Tensor) -> FrozenWeight:
    """Pack a weight (outputs, inputs) of bfloat16; see :func:`can_freeze`."""
    weight = weight.detach().contiguous()
    outputs, inputs = weight.shape
    size = -(-outputs // EDGE) * -(-inputs // EDGE) * EDGE * EDGE
    forward, backward = torch.empty(size, dtype=weight.dtype), torch.empty(size, dtype=weight.dtype)
    library.call("pack_frozen", weight, inputs, 1, outputs, inputs, forward)
    library.call("pack_frozen", weight, inputs, 0, inputs, outputs, backward)
    return FrozenWeight(outputs, inputs, forward, backward)


def forward_product(x: Tensor, weight: Tensor | FrozenWeight) -> Tensor:
    """x W^T: x (n, in) → (n, out) in the type of ``x``; W (out, in)."""
    if isinstance(weight, Tensor):
        return product(x, weight.t())
    y = x.new_empty(len(x), weight.outputs)
    none = None, None, None, None, 0, 0, 0.0, None
    library.call("low_rank", x.contiguous(), weight.forward, *none, y, len(x), weight.inputs, weight.outputs)
    return y


def input_product(d_y: Tensor, weight: Tensor | FrozenWeight, out: Tensor) -> Tensor:
    """dY W into ``out``: dY (n, out) → (n, in), whose rows lie side by side."""
    if isinstance(weight, Tensor):
        return product(d_y, weight, out=out)
    assert out.is_contiguous()
    none = None, None, 0, 0, 0.0
    library.call(
        "low_rank_backward", d_y.contiguous(), None, None, weight.backward, None, *none, out, None, None, len(d_y), weight.inputs,
        weight.outputs,
    )  # fmt: skip
    return out
