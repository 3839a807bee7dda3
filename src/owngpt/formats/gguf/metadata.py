"""What a GGUF file says about its model, key by key; what nobody read is refused, as in a config.json."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType

from owngpt.errors import ModelFolderError
from owngpt.formats.gguf.header import Header, StoredTensor

HARMLESS = frozenset((
    "attention.causal", "rope.scaling.finetuned", "tensor_data_layout", "vocab_size", "attention.value_length",
    "rope.scaling.yarn_log_multiplier", "pooling_type",
))  # fmt: skip
"""Keys of an architecture that are derived from others or change nothing."""

PIECE = 1 << 20
"""Bytes compared at a time."""


class Metadata:
    """The keys of one architecture. ``llama.block_count`` is asked for as "block_count"."""

    def __init__(self, header: Header) -> None:
        """
        :raises ModelFolderError: the file names no architecture.
        """
        self.path = header.path
        self.tensors: dict[str, StoredTensor] = header.tensors
        self._values = header.values
        architecture = header.values.get("general.architecture")
        if not isinstance(architecture, str):
            raise ModelFolderError(f"{self.path} names no general.architecture; it is not a model")
        self.architecture = architecture
        self._seen: set[str] = set(HARMLESS)

    def take(self, name: str, default: Any = None) -> Any:
        """The value of a key of the architecture, whatever its type."""
        self._seen.add(name)
        return self._values.get(f"{self.architecture}.{name}", default)

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 1, also from an array that says the same for each layer."""
        value = self.take(name, default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(name, value, "one whole number of at least 1")
        return value

    def layers(self) -> int:
        """Number of layers; a file that claims more than it has tensors is not believed."""
        count = self.integer("block_count")
        if count > len(self.tensors):
            raise self.error("block_count", count, f"at most the number of tensors, {len(self.tensors)}")
        return count

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number."""
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(name, value, "a number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise self.error(name, value, "true or false")
        return value

    def text(self, name: str, default: str) -> str:
        """A string."""
        value = self.take(name, default)
        if not isinstance(value, str):
            raise self.error(name, value, "a string")
        return value

    def has(self, name: str) -> bool:
        """Whether the key is there."""
        return f"{self.architecture}.{name}" in self._values

    def rows(self, tensor: str) -> int:
        """First dimension of a tensor, such as the number of token embeddings.

        :raises ModelFolderError: there is no such tensor.
        """
        if tensor not in self.tensors:
            raise ModelFolderError(f"{self.path} has no tensor {tensor}; it is not a whole model")
        return self.tensors[tensor].shape[0]

    @property
    def has_own_head(self) -> bool:
        """Whether the head is a matrix of its own, not the embedding; the tensor may be there and be the embedding again."""
        head, embedding = self.tensors.get("output.weight"), self.tensors.get("token_embd.weight")
        return head is not None and not (embedding is not None and self._equal(head, embedding))

    def _equal(self, one: StoredTensor, other: StoredTensor) -> bool:
        if (one.kind, one.shape) != (other.kind, other.shape):
            return False
        first, second = (np.memmap(self.path, np.uint8, "r", item.start, (item.size,)) for item in (one, other))
        return all(np.array_equal(first[i : i + PIECE], second[i : i + PIECE]) for i in range(0, one.size, PIECE))

    def vector(self, tensor: str, size: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The values of a small float32 tensor that belongs to the configuration, (size,) float64.

        :raises ModelFolderError: it is of another type or size, or not finite.
        """
        stored = self.tensors[tensor]
        if stored.kind != GGMLQuantizationType.F32 or stored.shape != (size,):
            raise ModelFolderError(f"{self.path}: {tensor} is {stored.kind.name} {stored.shape}; it must be F32 ({size},)")
        values = np.fromfile(self.path, "<f4", size, offset=stored.start).astype(np.float64)
        if values.size != size or not np.isfinite(values).all():
            raise ModelFolderError(f"{self.path}: {tensor} holds values that are not numbers")
        return values

    def finish(self) -> None:
        """Refuse the keys of the architecture that were not read."""
        head = self.architecture + "."
        asked = {name.removeprefix(head) for name in self._values if name.startswith(head)}
        unknown = sorted(name for name in asked - self._seen if not _says_nothing(self._values[head + name]))
        if unknown:
            raise ModelFolderError(
                f"{self.path}: this {self.architecture} model has keys that are not implemented: {', '.join(unknown[:5])}"
            )

    def error(self, name: str, value: Any, wanted: str) -> ModelFolderError:
        """The error for a key that is wrong."""
        found = "is missing" if value is None else f"is {str(value)[:60]}"
        return ModelFolderError(f"{self.path}: {self.architecture}.{name} {found}; it must be {wanted}")


def _says_nothing(value: Any) -> bool:
    """A count of zero or a switch that is off asks for nothing."""
    return not isinstance(value, np.ndarray | list | str) and not value
