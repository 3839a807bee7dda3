"""Make a model ready for inference: its weights packed in the order in which the kernels read them, its norms in float32.

Packed modules take the place of the model's own; the forward pass stays the one in ``model/``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from owngpt.kernels import activation, packed, tape
from owngpt.kernels.packed import Kind, PackedWeight
from owngpt.model.embedding import Embedding
from owngpt.model.gpt import GPT
from owngpt.model.linear import Linear
from owngpt.model.mlp import MLP
from owngpt.model.norm import HeadNorm, LayerNorm, RMSNorm


class PackedLinear(nn.Module):
    """y = x W^T + b over a packed weight, as steps of a tape."""

    def __init__(self, weight: PackedWeight, bias: Tensor | None, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.packed, self.bias, self.dtype = weight, bias, dtype

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) bfloat16 → (..., out)"""
        return packed.linear(x, self.packed, self.bias, self.dtype)


class PackedEmbedding(nn.Module):
    """Rows of a packed table, and the tied head's product with it."""

    def __init__(self, weight: PackedWeight, scale: float) -> None:
        super().__init__()
        self.packed = weight
        self.factor = float(torch.tensor(scale, dtype=torch.bfloat16))  # rounded first, as Gemma was trained

    def forward(self, index: Tensor) -> Tensor:
        """(...) ids → (..., C) bfloat16, times the scale."""
        return packed.embed(index, self.packed, self.factor)

    def project(self, hidden: Tensor) -> Tensor:
        """(..., C) → (..., V) float32"""
        return packed.linear(hidden, self.packed, None, torch.float32)


class PackedGatedMLP(nn.Module):
    """A gated feed-forward layer over packed weights."""

    def __init__(self, mlp: MLP) -> None:
        """:param mlp: whose linear layers are packed already."""
        super().__init__()
        self.gate_up, self.down, self.activation = mlp.gate_up, mlp.down, mlp.activation
        self.apart = False
        """The two layers run one after the other, since something is added to what they give (see adapters.py)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)"""
        gate_up, down = self.gate_up, self.down
        assert isinstance(gate_up, PackedLinear)
        assert isinstance(down, PackedLinear)
        rows = x.numel() // x.shape[-1]
        on_tiles = gate_up.packed.on_tiles(rows) and down.packed.on_tiles(rows)
        if on_tiles and down.packed.inputs % packed.COLUMNS == 0 and not self.apart:
            return packed.gated_mlp(x, gate_up.packed, gate_up.bias, down.packed, down.bias, tanh_form=self.activation == "geglu")
        y: Tensor = down(activation.gated(gate_up(x), self.activation))
        return y


def recordable(model: GPT) -> str | None:
    """Why the packed kernels cannot run this model, or None."""
    config = model.config
    if not tape.can_record():
        return "this machine has no compiled kernels with matrix tiles (AMX)"
    if config.experts:
        return "experts are not among the packed kernels"
    if config.head_size % 32 or config.head_size > 512:
        return f"a head of {config.head_size} is not a multiple of 32 up to 512"
    if config.rotary_scaling is not None and config.rotary_scaling.kind == "dynamic":
        return "dynamic rotary scaling changes with the length of the text"
    if config.activation == "swiglu_clamped":
        return "the activation swiglu_clamped is not among the packed kernels"
    return None


def pack_model(model: GPT, kind: Kind, *, head_kind: Kind | None = None) -> GPT:
    """Replace the model's weights by packed ones, in place; each original is let go at once.

    :param kind: of the blocks' matrices.
    :param head_kind: of the embedding and the head, which quantize worse: by default int8 where ``kind`` is int4.
    """
    head_kind = head_kind or ("int8" if kind == "int4" else kind)
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear):
            is_head = name == "output_head"
            _swap(
                model, name, _packed_linear(module, head_kind if is_head else kind, torch.float32 if is_head else torch.bfloat16)
            )
        elif isinstance(module, Embedding):
            table: Kind = head_kind if name == "embedding" else "bf16"
            _swap(model, name, PackedEmbedding(packed.pack(module.weight.data, table), module.scale))
            module.weight.data = torch.empty(0)
        elif isinstance(module, RMSNorm | LayerNorm | HeadNorm):
            _widen(module)
    for name, module in list(model.named_modules()):
        if isinstance(module, MLP) and module.gated:
            _swap(model, name, PackedGatedMLP(module))
    return model


def _packed_linear(module: Linear, kind: Kind, dtype: torch.dtype) -> PackedLinear:
    weight = packed.pack(module.weight.data, kind)
    module.weight.data = torch.empty(0)
    return PackedLinear(weight, None if module.bias is None else module.bias.data.float(), dtype)


def _widen(norm: RMSNorm | LayerNorm | HeadNorm) -> None:
    """float32, with the offset added in: what the kernels multiply by."""
    norm.weight.data = norm.weight.data.float() + getattr(norm, "offset", 0.0)
    if isinstance(norm, LayerNorm):
        norm.bias.data = norm.bias.data.float()
    else:
        norm.offset = 0.0


def _swap(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, leaf, new)


def each_packed(model: GPT, action: Callable[[PackedWeight], None]) -> None:
    """Visit every packed weight."""
    for module in model.modules():
        if isinstance(module, PackedLinear | PackedEmbedding):
            action(module.packed)
