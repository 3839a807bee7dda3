"""The tensors of a GGUF file under their Hugging Face names, for :func:`owngpt.formats.weights.load_state`."""

from __future__ import annotations

import mmap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType
from torch import Tensor

from owngpt.errors import ModelFolderError
from owngpt.formats.gguf.header import StoredTensor
from owngpt.formats.gguf.layout import Config, Pairing
from owngpt.formats.gguf.metadata import Metadata
from owngpt.formats.gguf.quantization import PLAIN, QUANTIZED, dequantize, in_groups
from owngpt.formats.gguf.rotary import DIVISORS
from owngpt.formats.weights import GroupedTensor

HEAD = "output.weight"


class GGUFTensors:
    """Memory-mapped; a tensor is unpacked when it is read."""

    def __init__(self, metadata: Metadata, pairings: list[Pairing], config: Config) -> None:
        """
        :param config: the config.json of the file.
        :raises ModelFolderError: the file has tensors that no pairing names, or of a kind that cannot be unpacked.
        """
        self.path: Path = metadata.path
        self._stored = metadata.tensors
        tied = HEAD if config["tie_word_embeddings"] else None
        present = [pair for pair in pairings if pair.stored != (tied,) and all(name in self._stored for name in pair.stored)]
        self._pairings = {pair.theirs: pair for pair in present}
        self._check({*(name for pair in present for name in pair.stored), DIVISORS, *([tied] if tied else [])})
        self.shapes: dict[str, tuple[int, ...]] = {name: self._shape(pair) for name, pair in self._pairings.items()}
        self.dtypes: dict[str, str] = {name: self._dtype(pair) for name, pair in self._pairings.items()}
        # Copy on write: torch wants memory that it may write to, and the file must never change.
        self._pool = ThreadPoolExecutor(max(1, torch.get_num_threads()))
        self._bytes = np.memmap(self.path, np.uint8, "c")

    def _check(self, known: set[str]) -> None:
        extra = sorted(set(self._stored) - known)
        if extra:
            more = f" and {len(extra) - 5} more" if len(extra) > 5 else ""
            raise ModelFolderError(f"{self.path} has tensors that are not part of its model: {', '.join(extra[:5])}{more}")
        kinds = sorted({tensor.kind.name for tensor in self._stored.values() if tensor.kind not in (*PLAIN, *QUANTIZED)})
        if kinds:
            raise ModelFolderError(f"{self.path} has tensors of the types {', '.join(kinds)}, which are not implemented")

    def _shape(self, pair: Pairing) -> tuple[int, ...]:
        """Shape of theirs, from the shapes alone."""
        try:
            return tuple(pair.read([torch.empty(self._stored[name].shape, device="meta") for name in pair.stored]).shape)
        except (RuntimeError, ValueError, IndexError) as error:
            shapes = ", ".join(f"{name} {self._stored[name].shape}" for name in pair.stored)
            raise ModelFolderError(f"{self.path}: tensors of shapes that do not fit: {shapes}") from error

    def _dtype(self, pair: Pairing) -> str:
        kind = self._stored[pair.stored[0]].kind
        return kind.name if kind in PLAIN else GGMLQuantizationType.F32.name

    def read(self, name: str) -> Tensor:
        """See :class:`owngpt.formats.weights.TensorSource`; quantized values are float32."""
        pair = self._pairings[name]
        return pair.read([self._unpacked(self._stored[stored]) for stored in pair.stored])

    def read_grouped(self, name: str) -> GroupedTensor | None:
        """A tensor in the groups of 32 that it is stored in, or None."""
        pair = self._pairings[name]
        if not pair.by_rows or len(pair.stored) != 1:
            return None
        tensor = self._stored[pair.stored[0]]
        found = in_groups(self._bytes[tensor.start : tensor.start + tensor.size], tensor.kind, tensor.shape)
        if found is None:
            return None
        quants, factors, offsets = (None if each is None else pair.read([each]) for each in found)
        assert quants is not None
        assert factors is not None
        return GroupedTensor(quants, factors, offsets)

    def release(self, name: str) -> None:
        """See :class:`owngpt.formats.weights.TensorSource`: the pages of the mapped file go, and are read again when touched."""
        mapped = getattr(self._bytes, "_mmap", None)
        for stored in self._pairings[name].stored:
            tensor = self._stored[stored]
            first = -(-tensor.start // mmap.PAGESIZE) * mmap.PAGESIZE
            size = (tensor.start + tensor.size) // mmap.PAGESIZE * mmap.PAGESIZE - first
            if size > 0 and mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED, first, size)

    def _unpacked(self, tensor: StoredTensor) -> Tensor:
        return dequantize(self._bytes[tensor.start : tensor.start + tensor.size], tensor.kind, tensor.shape, self._pool)
