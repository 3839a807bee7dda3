"""Weights that are not trained, packed once for the products of a training step: forward, and the gradient of the input."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from owngpt.kernels import library, pool
from owngpt.kernels.linear import product

EDGE = 32
"""Outputs and inputs of a block of tiles."""


class FrozenWeight:
    """A weight (outputs, inputs) that the kernels of source/frozen.c read in two orders, bfloat16."""

    def __init__(self, outputs: int, inputs: int) -> None:
        self.outputs, self.inputs = outputs, inputs

    dtype = torch.bfloat16

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)"""
        return self.outputs, self.inputs

    def __len__(self) -> int:
        return self.outputs

    @property
    def forward(self) -> Tensor:
        """Panels of 32 outputs with all inputs."""
        raise NotImplementedError

    @property
    def backward(self) -> Tensor:
        """Panels of 32 inputs with all outputs."""
        raise NotImplementedError

    @property
    def bytes(self) -> int:
        """Memory that is held."""
        raise NotImplementedError

    def rows(self, index: Tensor) -> Tensor:
        """(n, inputs) bfloat16: the outputs with these numbers (n,)."""
        tiles = self.forward.view(-(-self.outputs // EDGE), -(-self.inputs // EDGE), 2, 16, 16, 2)
        panel, place = index // EDGE, index % EDGE
        return tiles[panel, :, place // 16, :, place % 16].reshape(len(index), -1)[:, : self.inputs]

    def unpacked(self) -> Tensor:
        """(outputs, inputs) bfloat16: what the products use."""
        panels, steps = -(-self.outputs // EDGE), -(-self.inputs // EDGE)
        # A pair of tiles: 16 pairs of inputs x 16 outputs x 2, for outputs 0-15 and 16-31.
        tiles = self.forward.view(panels, steps, 2, 16, 16, 2).permute(0, 2, 4, 1, 3, 5)
        return tiles.reshape(panels * EDGE, steps * EDGE)[: self.outputs, : self.inputs].contiguous()

    @property
    def _packed_values(self) -> int:
        return -(-self.outputs // EDGE) * -(-self.inputs // EDGE) * EDGE * EDGE


class PackedTwice(FrozenWeight):
    """Both orders in memory: 4 bytes a value, and nothing to do at any call."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(*weight.shape)
        weight = weight.detach().contiguous()
        self._forward, self._backward = (torch.empty(self._packed_values, dtype=self.dtype) for _ in range(2))
        library.call("pack_frozen", weight, self.inputs, 1, self.outputs, self.inputs, self._forward)
        library.call("pack_frozen", weight, self.inputs, 0, self.inputs, self.outputs, self._backward)

    @property
    def forward(self) -> Tensor:
        """See :class:`FrozenWeight`."""
        return self._forward

    @property
    def backward(self) -> Tensor:
        """See :class:`FrozenWeight`."""
        return self._backward

    @property
    def bytes(self) -> int:
        """See :class:`FrozenWeight`."""
        return (self._forward.numel() + self._backward.numel()) * self.dtype.itemsize


class Int8Weight(FrozenWeight):
    """int8 with a half-precision factor for each 32 inputs of an output, as :mod:`owngpt.kernels.packed` quantizes: 1.06 bytes a
    value, packed in the order that a call needs just before it."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(*weight.shape)
        groups = pad(weight.detach().float(), (0, -self.inputs % EDGE)).unflatten(1, (-1, EDGE))
        self._factors = (groups.abs().amax(-1) / 127).to(torch.float16)
        steps = self._factors.float()[..., None]
        numbers = torch.where(steps > 0, groups / steps, 0.0).round().clamp(-127, 127).to(torch.int8)
        self._numbers = numbers.flatten(1)[:, : self.inputs].contiguous()

    @property
    def forward(self) -> Tensor:
        """See :class:`FrozenWeight`; made anew."""
        return self._packed(1)

    @property
    def backward(self) -> Tensor:
        """See :class:`FrozenWeight`; made anew."""
        return self._packed(0)

    def _packed(self, across: int) -> Tensor:
        room = pool.empty((self._packed_values,), self.dtype)
        library.call("pack_frozen_int8", self._numbers, self._factors, self.outputs, self.inputs, across, room)
        return room

    @property
    def bytes(self) -> int:
        """See :class:`FrozenWeight`."""
        return self._numbers.numel() + 2 * self._factors.numel()


def can_freeze(weight: Tensor) -> bool:
    """Whether this machine's kernels take the weight."""
    return library.available(weight) and library.has_tiles()


def freeze(weight: Tensor, *, int8: bool = False) -> FrozenWeight:
    """Pack a weight (outputs, inputs) of bfloat16; see :func:`can_freeze`.

    :param int8: a quarter of the memory, for rounded values and some tenths of the speed.
    """
    return Int8Weight(weight) if int8 else PackedTwice(weight)


def forward_product(x: Tensor, weight: Tensor | FrozenWeight, bias: Tensor | None = None) -> Tensor:
    """x W^T + b: x (n, in) → (n, out) in the type of ``x``; W (out, in), b (out,)."""
    if isinstance(weight, Tensor):
        return product(x, weight.t(), bias)
    y = pool.empty((len(x), weight.outputs), x.dtype)
    bias = None if bias is None else bias.float().contiguous()
    library.call("frozen_product", x.contiguous(), weight.forward, bias, y, len(x), weight.outputs, weight.inputs)
    return y


def input_product(d_y: Tensor, weight: Tensor | FrozenWeight, out: Tensor) -> Tensor:
    """dY W into ``out``: dY (n, out) → (n, in), whose rows lie side by side."""
    if isinstance(weight, Tensor):
        return product(d_y, weight, out=out)
    assert out.is_contiguous()
    library.call("frozen_product", d_y.contiguous(), weight.backward, None, out, len(d_y), weight.inputs, weight.outputs)
    return out
