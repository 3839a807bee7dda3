"""Weights by another layout's names: from its files into ours, from ours into its files."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from owngpt.errors import ModelFolderError
from owngpt.families import Family
from owngpt.families.base import Part, TensorMap
from owngpt.formats.mxfp4 import unpacked
from owngpt.model.config import GPTConfig

TIED_HEADS = ("lm_head.weight", "embed_out.weight")
"""Older files repeat a tied head under this name."""
FLOATING = ("F64", "F32", "F16", "BF16")
NAMED_IN_ERRORS = 5


@dataclass(frozen=True)
class GroupedTensor:
    """A matrix (rows, columns) in few bits as a file stores it: value = factor * quant + offset, by groups of 32 columns."""

    quants: Tensor
    """(rows, columns): uint8 from 0 to 15, or int8."""
    factors: Tensor
    """(rows, columns / 32) float16."""
    offsets: Tensor | None
    """(rows, columns / 32) float16; None, which is 0, where quants are int8."""

    @property
    def bits(self) -> int:
        """Of a quant: 4 or 8."""
        return 8 if self.offsets is None else 4

    def floats(self) -> Tensor:
        """(rows, columns) float32."""
        values = self.quants.unflatten(1, (-1, 32)).float() * self.factors.float()[..., None]
        return (values if self.offsets is None else values + self.offsets.float()[..., None]).flatten(1)


Take = Callable[[str, "Tensor | GroupedTensor"], Tensor]
"""Called with each of our tensors as soon as it is read, by its name; gives what the model is to hold in its place. So that
weights can be turned into another form one by one, without a second copy of the model."""


Prepare = Callable[[GPTConfig], "Take | None"]
"""Makes a :data:`Take` for a model whose configuration has been read, or None to have the tensors themselves."""


class TensorSource(Protocol):
    """Where tensors come from, by the names and in the orientation of the Hugging Face world."""

    @property
    def path(self) -> Path:
        """The folder or file, for messages."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of every tensor there is."""

    @property
    def dtypes(self) -> Mapping[str, str]:
        """As safetensors spells the element types that :meth:`read` gives: "F32", "F16", "BF16", …"""

    def read(self, name: str) -> Tensor:
        """A tensor of that name, on the CPU; it may be a view of a mapped file."""
        ...

    def release(self, name: str) -> None:
        """Nobody needs what :meth:`read` gave for this name any more: its memory may go."""
        ...


# In


def load_state(
    source: TensorSource, family: Family, config: GPTConfig, dtype: torch.dtype, take: Take | None = None
) -> dict[str, Tensor]:
    """Every tensor of ours, from theirs. What needs no change stays where it lies, in the mapped file.

    :param dtype: what the tensors are turned into.
    :param take: see :data:`Take`; it must not keep the tensor that it is given, whose memory may go.
    :raises ModelFolderError: tensors are missing, left over or of another shape; they are named.
    """
    source = unpacked(source)
    names = _spelled_as_stored(source, family)
    maps = _checked_maps(source, family, config, names)
    if take is None:
        return {entry.ours: _loaded(source, entry, names, dtype) for entry in maps}
    state = {}
    for entry in maps:
        state[entry.ours] = take(entry.ours, _grouped(source, entry, names) or _loaded(source, entry, names, dtype))
        for part in entry.parts:
            source.release(names[part.name])
    return state


def _grouped(source: TensorSource, entry: TensorMap, names: Mapping[str, str]) -> GroupedTensor | None:
    """The tensor as the file groups it, where all of its parts are stored so and are only put one under another."""
    read = getattr(source, "read_grouped", None)
    if read is None or any(part.transposed or part.scale != 1.0 or part.order is not None for part in entry.parts):
        return None
    parts: list[GroupedTensor | None] = [read(names[part.name]) for part in entry.parts]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts) or len({part.bits for part in found}) > 1:
        return None
    offsets = [part.offsets for part in found if part.offsets is not None]
    return GroupedTensor(
        torch.cat([part.quants for part in found]),
        torch.cat([part.factors for part in found]),
        torch.cat(offsets) if offsets else None,
    )


def stored_dtype(source: TensorSource) -> torch.dtype:
    """What most of the values are stored as: bfloat16, float16, else float32."""
    counts: dict[str, int] = {}
    for name, shape in source.shapes.items():
        counts[source.dtypes[name]] = counts.get(source.dtypes[name], 0) + math.prod(shape)
    most = max(counts, key=lambda name: counts[name], default="F32")
    return {"BF16": torch.bfloat16, "F16": torch.float16}.get(most, torch.float32)


def _spelled_as_stored(source: TensorSource, family: Family) -> dict[str, str]:
    """Full name → name in the files, which may lack the family's prefix."""
    head = ("lm_head.", "embed_out.", family.prefix)
    names = {name if name.startswith(head) else family.prefix + name: name for name in source.shapes}
    if len(names) < len(source.shapes):
        twice = sorted(set(source.shapes) - set(names.values()))
        raise ModelFolderError(f"{source.path}: tensors stored twice, with and without {family.prefix}: {_listed(twice)}")
    return names


def _checked_maps(source: TensorSource, family: Family, config: GPTConfig, names: Mapping[str, str]) -> list[TensorMap]:
    if config.layers > len(names):  # before anything is built for a number of layers that a config only claims
        raise ModelFolderError(f"{source.path}: config.json has {config.layers} layers, the weights have {len(names)} tensors")
    maps = family.tensors(config)
    wanted = {part.name: entry.their_shape(part) for entry in maps for part in entry.parts}
    missing = [name for name in wanted if name not in names]
    tied = [name for name in TIED_HEADS if config.tie_embeddings and name in names]
    extra = [name for name in names if name not in wanted and name not in tied and not re.search(family.derived, name)]
    wrong = [
        f"{name} {_shape(source.shapes[names[name]])} instead of {_shape(shape)}"
        for name, shape in wanted.items()
        if name in names and source.shapes[names[name]] != shape
    ]
    present = [name for name in wanted if name in names]
    integers = [f"{name} {source.dtypes[names[name]]}" for name in present if source.dtypes[names[name]] not in FLOATING]
    for what, found in (
        ("missing", missing), ("not part of the model", extra), ("of a wrong shape", wrong), ("not of floating point", integers),
    ):  # fmt: skip
        if found:
            raise ModelFolderError(f"{source.path}: tensors {what} for its config.json ({family.model_type}): {_listed(found)}")
    for name in tied:
        _check_tied(source, names[name], names[maps[0].parts[0].name])
    return maps


def _check_tied(source: TensorSource, head: str, embedding: str) -> None:
    """Some files repeat a tied head; another one would be ignored silently."""
    same = torch.equal(source.read(head), source.read(embedding))
    source.release(head)
    if not same:
        raise ModelFolderError(
            f"{source.path}: config.json ties {head} to the embedding, but the file holds another one; "
            "set tie_word_embeddings to false"
        )


def _loaded(source: TensorSource, entry: TensorMap, names: Mapping[str, str], dtype: torch.dtype) -> Tensor:
    """One tensor of ours. A part that is copied is let go of at once, so that no more than one part is held twice."""
    if len(entry.parts) == 1:
        stored = source.read(names[entry.parts[0].name])
        whole = entry.to_ours(entry.parts[0], stored)
        if whole.dtype == dtype and whole.is_contiguous():
            return whole
        del stored, whole
    target = torch.empty(entry.shape, dtype=dtype)
    for part, rows in zip(entry.parts, target.split([part.rows for part in entry.parts]), strict=True):
        rows.copy_(entry.to_ours(part, source.read(names[part.name])))
        source.release(names[part.name])
    return target


# Out


def export_state(state: Mapping[str, Tensor], family: Family, config: GPTConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of theirs, from ours; on the CPU, contiguous, a tied head once."""
    return dict(exported(state, family, config, dtype))


def exported(state: Mapping[str, Tensor], family: Family, config: GPTConfig, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """What :func:`export_state` gives, one tensor at a time, so that only one is held twice."""
    for entry in family.tensors(config):
        tensor = state[entry.ours].detach()
        assert tuple(tensor.shape) == entry.shape, (entry.ours, tuple(tensor.shape), entry.shape)
        for part, rows in zip(entry.parts, tensor.split([part.rows for part in entry.parts]), strict=True):
            yield part.name, _one_exported(entry, part, rows, dtype)


def _one_exported(entry: TensorMap, part: Part, rows: Tensor, dtype: torch.dtype) -> Tensor:
    theirs = entry.to_theirs(part, rows).to(device="cpu", dtype=dtype)
    # A copy of the part alone: safetensors refuses tensors that share memory.
    return theirs.clone(memory_format=torch.contiguous_format)


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _listed(names: list[str]) -> str:
    more = len(names) - NAMED_IN_ERRORS
    return ", ".join(names[:NAMED_IN_ERRORS]) + (f" and {more} more" if more > 0 else "")
