"""Weights by another layout's names: from its files into ours, from ours into its files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import safetensors
import torch
from torch import Tensor

from owngpt.errors import ModelFolderError
from owngpt.families import Family
from owngpt.families.base import Part, TensorMap
from owngpt.model.config import GPTConfig

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TIED_HEADS = ("lm_head.weight", "embed_out.weight")
"""Older files repeat a tied head under this name."""
FLOATING = ("F64", "F32", "F16", "BF16")
NAMED_IN_ERRORS = 5


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


class TensorFiles:
    """The tensors of a folder, memory-mapped: shapes are known at once, bytes are read on first touch."""

    def __init__(self, folder: Path) -> None:
        """
        :raises ModelFolderError: there are no weights, or a file is damaged.
        """
        self.path = folder
        self._stack = ExitStack()
        self._handles: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        try:
            for file in _weight_files(folder):
                self._open(file)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, file: Path) -> None:
        try:
            handle = self._stack.enter_context(safetensors.safe_open(file, framework="pt"))
        except (OSError, safetensors.SafetensorError) as error:
            raise ModelFolderError(f"{file} is missing, damaged or not safetensors ({error}); copy the folder again") from error
        for name in handle.keys():  # noqa: SIM118 - not a dict
            view = handle.get_slice(name)
            if name in self.shapes:
                raise ModelFolderError(f"{file}: {name} is stored twice in this folder")
            self._handles[name] = handle
            self.shapes[name] = tuple(view.get_shape())
            self.dtypes[name] = view.get_dtype()

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored."""
        tensor: Tensor = self._handles[name].get_tensor(name)
        return tensor


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    index = folder / INDEX_FILE
    if index.is_file():
        return _shards(folder, index)
    pickled = sorted(file.name for file in folder.glob("*.bin"))
    if pickled:
        raise ModelFolderError(
            f"{folder} has its weights in {pickled[0]}, a pickle, which can run any program when it is opened and is not "
            "read; open it with transformers where you trust it and save it again with save_pretrained(), which writes "
            f"{WEIGHTS_FILE}"
        )
    raise ModelFolderError(f"{folder} has no {WEIGHTS_FILE}; name a model folder")


def _shards(folder: Path, index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFolderError(f"{index} is not an index of weights; copy the folder again") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelFolderError(f"{index} names {name!r}, which is not a safetensors file of this folder")
    return [folder / name for name in sorted(names)]


# In


def load_state(source: TensorSource, family: Family, config: GPTConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of ours, from theirs.

    :param dtype: what the tensors are turned into.
    :raises ModelFolderError: tensors are missing, left over or of another shape; they are named.
    """
    names = _spelled_as_stored(source, family)
    maps = _checked_maps(source, family, config, names)
    return {entry.ours: _joined(source, entry, names).to(dtype) for entry in maps}


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
        embedding = names[maps[0].parts[0].name]
        if not torch.equal(source.read(names[name]), source.read(embedding)):
            raise ModelFolderError(
                f"{source.path}: config.json ties {name} to the embedding, but the file holds another one; "
                "set tie_word_embeddings to false"
            )
    return maps


def _joined(source: TensorSource, entry: TensorMap, names: Mapping[str, str]) -> Tensor:
    parts = [entry.to_ours(part, source.read(names[part.name])) for part in entry.parts]
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)


# Out


def export_state(state: Mapping[str, Tensor], family: Family, config: GPTConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of theirs, from ours; on the CPU, contiguous, a tied head once."""
    return dict(_exported(state, family, config, dtype))


def _exported(state: Mapping[str, Tensor], family: Family, config: GPTConfig, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
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
