"""LoRA (arXiv 2106.09685): train small low-rank updates of a model's matrices, and nothing else of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from owngpt.config.checks import above, at_least, within
from owngpt.errors import UsageError
from owngpt.families import Family
from owngpt.families.base import Part, TensorMap
from owngpt.finetune.adapter.low_rank import FrozenLinear, LowRankLinear, frozen
from owngpt.formats.peft import load_adapter
from owngpt.formats.peft_writer import AdapterSettings, StoredUpdate, write_adapter
from owngpt.kernels.frozen import can_freeze, freeze
from owngpt.kernels.low_rank import Spans
from owngpt.model.gpt import GPT
from owngpt.model.linear import Linear

ALL = ("all", "all-linear")
"""Every matrix of attention and feed-forward layers."""


@dataclass(frozen=True)
class LoraSettings:
    """What an adapter is. Checked when it is made."""

    rank: int = 16
    """Inner dimension of each update."""
    alpha: float = 32.0
    """An update counts alpha / rank, or alpha / sqrt(rank) with ``rslora``."""
    dropout: float = 0.0
    """Share of an update's inputs that are zeroed while training."""
    targets: tuple[str, ...] = ("all",)
    """Names of the matrices in the Hugging Face layout, such as q_proj and v_proj; all: every one."""
    rslora: bool = False
    """Rank-stabilised scale (arXiv 2312.03732)."""
    dora: bool = False
    """Learn the length of each output's weights apart from their direction (arXiv 2402.09353)."""

    def __post_init__(self) -> None:
        at_least("rank", self.rank, 1)
        above("alpha", self.alpha, 0, example=32)
        within("lora_dropout", self.dropout, 0, 1, high_open=True)
        if not self.targets:
            raise UsageError("--target-modules names nothing; name matrices such as q_proj,v_proj, or all")

    @property
    def scale(self) -> float:
        """What an update is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class Lora:
    """The adapter of a model: made by :func:`attach`, it trains through the model's own forward pass."""

    def __init__(self, model: GPT, settings: LoraSettings, entries: list[TensorMap], layers: dict[str, LowRankLinear]) -> None:
        """:param entries: every matrix that could have an update."""
        self.model, self.settings, self.entries, self.layers = model, settings, entries, layers

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What is trained, by the model's names for it; float32."""
        for name, layer in self.layers.items():
            for leaf, parameter in layer.named_parameters(recurse=False):
                if leaf.startswith("lora_"):
                    yield f"{name}.{leaf}", parameter

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for _, parameter in self.named_parameters()]

    @property
    def size(self) -> int:
        """Numbers that are trained."""
        return sum(parameter.numel() for parameter in self.parameters())

    def state(self) -> dict[str, Tensor]:
        """A copy of what is trained."""
        return {name: parameter.detach().clone() for name, parameter in self.named_parameters()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state` gave."""
        for name, parameter in self.named_parameters():
            parameter.copy_(state[name])

    @torch.no_grad()
    def weaken(self, strength: float) -> None:
        """Keep a share of what was learned, in place: 1 is all of it, 0 the base."""
        for layer in self.layers.values():
            layer.weaken(strength)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the model computes as its base does: the reference of a preference objective, with no second copy."""
        for layer in self.layers.values():
            layer.off = True
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.off = False

    def merged(self) -> GPT:
        """A plain model that computes the same; it shares with this one all that has no update."""
        packed = self._packed()
        plain = {id(layer): layer.merged() for layer in packed.values()}
        inside = {id(each) for layer in packed.values() for each in (*layer.parameters(), *layer.buffers())}
        others = [each for each in (*self.model.parameters(), *self.model.buffers()) if id(each) not in inside]
        known: dict[int, object] = {id(each): _sharing(each) for each in others}
        known |= {id(each): each for each in (self.model.config, self.model.rotary, self.model.local_rotary)}
        head, self.model.frozen_head = self.model.frozen_head, None
        try:
            return copy.deepcopy(self.model, {**known, **plain})
        finally:
            self.model.frozen_head = head

    def _packed(self) -> dict[str, LowRankLinear | FrozenLinear]:
        """Every layer that is not the model's own any more."""
        found = {name: module for name, module in self.model.named_modules() if isinstance(module, FrozenLinear)}
        return {name: module for name, module in found.items() if name.removesuffix(".base") not in self.layers} | self.layers

    def merge(self) -> GPT:
        """Put the updates into the model's own weights, for good: it is a plain model again, and this adapter is spent."""
        for name, layer in self._packed().items():
            _put(self.model, name, layer.merged())
        self.layers, self.model.frozen_head = {}, None
        return self.model

    def save(self, folder: str | Path, *, base: str) -> list[Path]:
        """Write the adapter as PEFT does: adapter_config.json and adapter_model.safetensors.

        :param base: folder or hub name of the model that it is for.
        :returns: the files written.
        :raises StorageError: the disk is full, read-only or not ours.
        """
        settings = self.settings
        updates: dict[str, StoredUpdate] = {}
        for entry in self.entries:
            if (layer := self.layers.get(_layer(entry))) is not None:
                updates.update(_stored_updates(layer, entry))
        parts = [part for entry in self.entries for part in entry.parts]
        described = AdapterSettings(
            base, settings.rank, settings.alpha, settings.dropout, settings.rslora, settings.dora,
            transposed=any(part.transposed for part in parts),
        )  # fmt: skip
        return write_adapter(folder, updates, described, [_module(part) for part in parts])

    def load(self, folder: str | Path) -> None:
        """Go on from an adapter that was saved with the same settings.

        :raises ModelFolderError: it is damaged, or for another model.
        :raises UsageError: its rank or its matrices are others.
        """
        updates = load_adapter(folder, self.model.config)
        if set(updates) != set(self.layers):
            raise UsageError(
                f"the adapter {folder} has updates of other matrices than these settings; name the same --target-modules"
            )
        for name, layer in self.layers.items():
            update = updates[name]
            if update.down.shape != layer.lora_down.shape or (update.magnitude is None) != (layer.lora_magnitude is None):
                raise UsageError(f"the adapter {folder} has another rank or kind than these settings; give its --rank and --dora")
            layer.take(update.down, update.up, update.magnitude)


def check_attachable(model: GPT, settings: LoraSettings, family: Family, *, int8: bool = False) -> None:
    """Whether :func:`attach` would work with the same arguments; nothing is changed.

    :raises UsageError: as there.
    """
    if int8 and not can_freeze(model.embedding.weight):
        raise UsageError("--int8-base needs a model in bfloat16 and a processor with AVX-512, which this is not; leave it out")
    _chosen(_targets(model, family), settings.targets)


def attach(model: GPT, settings: LoraSettings, family: Family, *, seed: int, int8: bool = False) -> Lora:
    """Freeze a model and put low-rank updates over its matrices, in place. It computes as before until they are trained.

    :param family: whose names the targets have, and whose layout the saved adapter is for.
    :param int8: keep the frozen matrices of the blocks in 8 bits.
    :raises UsageError: a target is not a matrix of this model; those that are, are named. Or int8 is not possible here.
    """
    check_attachable(model, settings, family, int8=int8)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    entries = _targets(model, family)
    chosen = {_layer(entry): spans for entry, spans in _chosen(entries, settings.targets)}
    generator = torch.Generator().manual_seed(seed)
    layers: dict[str, LowRankLinear] = {}
    for name in [_layer(entry) for entry in entries]:
        plain = model.get_submodule(name)
        assert isinstance(plain, Linear)
        base = frozen(plain, int8=int8)
        if name in chosen:
            layer = LowRankLinear(
                base, chosen[name], settings.rank, settings.scale, magnitude=settings.dora, generator=generator
            ).train(model.training)
            layer.drop(settings.dropout, model.dropout, len(layers))
            layers[name] = layer
        _put(model, name, layers.get(name, base))
    if model.head_bias is None and can_freeze(model.head_weight):
        model.frozen_head = freeze(model.head_weight)
    for parameter in model.parameters():
        if not parameter.requires_grad:  # it may lie in the file that the packed weights came from, which can go now
            parameter.data = parameter.data.clone()
    return Lora(model, settings, entries, layers)


def _chosen(entries: list[TensorMap], targets: Sequence[str]) -> list[tuple[TensorMap, Spans]]:
    modules = [_module(part) for entry in entries for part in entry.parts]
    unknown = [name for name in targets if name not in ALL and not any(_means(name, module) for module in modules)]
    if unknown:
        known = sorted({module.rpartition(".")[2] for module in modules})
        raise UsageError(
            f"--target-modules names {', '.join(unknown)}, but this model's matrices are {', '.join(known)}; or say all"
        )
    found = [(entry, _spans(entry, targets)) for entry in entries]
    return [(entry, spans) for entry, spans in found if spans]


def _spans(entry: TensorMap, targets: Sequence[str]) -> Spans:
    spans, row = [], 0
    for part in entry.parts:
        if any(name in ALL or _means(name, _module(part)) for name in targets):
            spans.append((row, row + part.rows))
        row += part.rows
    return tuple(spans)


def _targets(model: GPT, family: Family) -> list[TensorMap]:
    """The matrices of the blocks; experts, which are stacks of them, stay as they are."""
    linear = {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Linear) and name.startswith("blocks.")
    }
    return [entry for entry in family.tensors(model.config) if entry.ours in linear]


def _means(name: str, module: str) -> bool:
    """As PEFT understands a target: a whole name, or its end behind a dot."""
    return module == name or module.endswith("." + name)


def _layer(entry: TensorMap) -> str:
    return entry.ours.removesuffix(".weight")


def _module(part: Part) -> str:
    return part.name.removesuffix(".weight")


def _stored_updates(layer: LowRankLinear, entry: TensorMap) -> Iterator[tuple[str, StoredUpdate]]:
    """Each update of a layer as the other layout has it: its rows in their order and of their scale."""
    first = 0
    numbers = {span: index for index, span in enumerate(layer.spans)}
    for part in entry.parts:
        index = numbers.get((first, first + part.rows))
        first += part.rows
        if index is None:
            continue
        down, up, magnitude = layer.update_of(index)
        if part.order is not None:
            back = torch.argsort(part.order(part.rows))
            up, magnitude = up[back], None if magnitude is None else magnitude[back]
        yield _module(part), StoredUpdate(down, up * part.scale, None if magnitude is None else magnitude * abs(part.scale))


def _sharing(tensor: Tensor) -> Tensor:
    """Another object for the same memory."""
    return nn.Parameter(tensor.data, requires_grad=False) if isinstance(tensor, nn.Parameter) else tensor


def _put(model: GPT, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)
