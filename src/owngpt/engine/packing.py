"""Make a model ready for inference: its weights packed in the order in which the kernels read them, its norms in float32.

Packed modules take the place of the model's own; the forward pass stays the one in ``model/``.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from owngpt.formats.weights import GroupedTensor
from owngpt.kernels import activation, packed, tape
from owngpt.kernels.memory import HugePages
from owngpt.kernels.packed import Kind, PackedWeight
from owngpt.model.config import GPTConfig
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
        """The two layers run one after the other, since something is added to what they give (see adapters.py). What lies between
        is then rounded to bfloat16 on its way, also for rows without an adapter in the same call."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)"""
        gate_up, down = self.gate_up, self.down
        assert isinstance(gate_up, PackedLinear)
        assert isinstance(down, PackedLinear)
        rows = x.numel() // x.shape[-1]
        if packed.joins(gate_up.packed, down.packed, rows) and not self.apart:
            return packed.gated_mlp(x, gate_up.packed, gate_up.bias, down.packed, down.bias, tanh_form=self.activation == "geglu")
        y: Tensor = down(activation.gated(gate_up(x), self.activation))
        return y


def recordable(model: GPT | GPTConfig) -> str | None:
    """Why the packed kernels cannot run this model, or None."""
    config = model if isinstance(model, GPTConfig) else model.config
    if not tape.can_record():
        return "this machine has no compiled kernels with matrix tiles, which need AVX-512"
    if config.experts:
        return "experts are not among the packed kernels"
    if config.head_size % 32 or config.head_size > 512:
        return f"a head of {config.head_size} is not a multiple of 32 up to 512"
    if config.turns_by_length:
        return "dynamic rotary scaling changes with the length of the text"
    if config.activation == "swiglu_clamped":
        return "the activation swiglu_clamped is not among the packed kernels"
    return None


STANDS_FOR: dict[Kind, Kind] = {"compact": "bf16", "q4_1": "int4"}
"""Kinds that hold what others would, in fewer bytes or exactly as a file has it."""


class Packer:
    """Packs weights as they are read from a file (:data:`owngpt.formats.weights.Take`), so that none is held twice."""

    def __init__(self, config: GPTConfig, kind: Kind, *, keep_groups: bool = False) -> None:
        """
        :param kind: of the blocks' matrices. Embedding and head quantize worse: they are int6 where this is int4.
        :param keep_groups: what is stored in groups stays so, exactly, whatever ``kind`` is.
        """
        self._kind, self._keep_groups = kind, keep_groups
        self._memory = HugePages()
        with torch.device("meta"):
            self._modules = dict(GPT(config).named_modules())
        self.weights: dict[str, PackedWeight] = {}
        """By the name of the module."""

    def __contains__(self, module: str) -> bool:
        """Whether the shape has a module of this name; a model may have others beside."""
        return module in self._modules

    def __call__(self, name: str, tensor: Tensor | GroupedTensor) -> Tensor:
        """Pack a matrix of the model and leave its shape; hand on any other tensor, in memory of its own."""
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and isinstance(self._modules[module], Linear | Embedding):
            self.weights[module] = self._packed(module, tensor)
            return torch.empty(self.weights[module].outputs, self.weights[module].inputs, device="meta")
        return tensor.floats() if isinstance(tensor, GroupedTensor) else tensor.clone()

    @property
    def kind(self) -> Kind:
        """What most of the weights have become."""
        sizes: Counter[Kind] = Counter()
        for weight in self.weights.values():
            sizes[STANDS_FOR.get(weight.kind, weight.kind)] += weight.outputs * weight.inputs
        return sizes.most_common(1)[0][0]

    def _packed(self, module: str, tensor: Tensor | GroupedTensor) -> PackedWeight:
        kind = self._kind
        if module == "position_embedding":
            kind = "bf16"
        elif module in ("embedding", "output_head") and kind == "int4":
            kind = "int6"
        if not isinstance(tensor, GroupedTensor):
            return packed.pack_exactly(tensor, self._memory) if kind == "bf16" else packed.pack(tensor, kind, self._memory)
        if self._keep_groups or (kind == "int8" and tensor.bits == 8):
            return packed.pack_groups(tensor.quants, tensor.factors, tensor.offsets, self._memory)
        if kind == "bf16":
            return packed.pack_exactly(packed.pack_groups(tensor.quants, tensor.factors, tensor.offsets), self._memory)
        if kind == "int4" and tensor.bits == 4:
            return packed.pack(packed.pack_groups(tensor.quants, tensor.factors, tensor.offsets), kind, self._memory)
        return packed.pack(tensor.floats(), kind, self._memory)

    def install(self, model: GPT) -> GPT:
        """Replace the model's modules by packed ones, in place."""
        for name, weight in self.weights.items():
            module = model.get_submodule(name)
            if isinstance(module, Embedding):
                _swap(model, name, PackedEmbedding(weight, module.scale))
            else:
                assert isinstance(module, Linear)
                bias = None if module.bias is None else module.bias.data.float()
                _swap(model, name, PackedLinear(weight, bias, torch.float32 if name == "output_head" else torch.bfloat16))
        for name, module in list(model.named_modules()):
            if isinstance(module, RMSNorm | LayerNorm | HeadNorm):
                _widen(module)
            elif isinstance(module, MLP) and module.gated:
                _swap(model, name, PackedGatedMLP(module))
        return model.eval()


def pack_model(model: GPT, kind: Kind) -> GPT:
    """Replace the model's weights by packed ones (see :class:`Packer`), in place; each original is let go at once."""
    packer = Packer(model.config, kind)
    for name, module in model.named_modules():
        if isinstance(module, Linear | Embedding):
            packer(f"{name}.weight", module.weight.data)
            module.weight.data = torch.empty(0)
    return packer.install(model)


def packed_copy(model: GPT, kind: Kind) -> GPT:
    """A packed model beside a plain one, which stays as it is; norms and biases are converted, all else is packed anew."""
    packer = Packer(model.config, kind)
    for name, module in model.named_modules():
        if name in packer and isinstance(module, Linear | Embedding):
            packer(f"{name}.weight", module.weight.data)
    with torch.device("meta"):
        twin = GPT(model.config)
    names = set(twin.state_dict())
    twin.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in names}, assign=True)
    return packer.install(twin)


def requantized(model: GPT, kind: Kind) -> GPT:
    """A packed model once more with weights of another kind, made from those that it has; it shares all else."""
    config, packer = model.config, Packer(model.config, kind)
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear | PackedEmbedding):
            packer(f"{name}.weight", module.packed.unpacked())
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    shared |= {id(each): each for each in (config, model.rotary, model.local_rotary)}
    each_packed(model, lambda weight: shared.update({id(weight): weight}))
    twin = copy.deepcopy(model, shared)
    for name, weight in packer.weights.items():
        module = twin.get_submodule(name)
        assert isinstance(module, PackedLinear | PackedEmbedding)
        module.packed = weight
    return twin


def packed_bytes(model: GPT) -> int:
    """Memory of all packed weights."""
    sizes: list[int] = []
    each_packed(model, lambda weight: sizes.append(weight.bytes))
    return sum(sizes)


def packed_kinds(model: GPT) -> set[Kind]:
    """Kinds of all packed weights."""
    kinds: set[Kind] = set()
    each_packed(model, lambda weight: kinds.add(weight.kind))
    return kinds


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


def each_packed(model: nn.Module, action: Callable[[PackedWeight], None]) -> None:
    """Visit every packed weight of a model or of a part of it."""
    for module in model.modules():
        if isinstance(module, PackedLinear | PackedEmbedding):
            action(module.packed)
