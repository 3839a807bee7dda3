"""The head of a GGUF file: what it says about the model, and where its tensors lie; believed only after it was checked.

Layout (ggml's docs/gguf.md, version 2 and 3, little-endian): magic "GGUF", version, number of tensors, number of keys;
then the keys with typed values, then a record for each tensor, then, aligned, the tensors' bytes.

Every length is compared with what is left of the file before anything of that length is touched, so that a damaged or
hostile file costs no more memory than its own head. gguf.GGUFReader makes several numpy views for each string of the
vocabulary (4 s for 100,000 of them, and it believes every count), so the head is read here in one pass, in 0.1 s.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType

from owngpt.errors import ModelFolderError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_KEYS = 1 << 16
MOST_TENSORS = 1 << 16
MOST_STRINGS = 1 << 22
"""In one array; the largest published vocabularies have some 262,000 tokens and half a million merges."""
LONGEST_NAME = 1 << 10
LONGEST_STRING = 1 << 24
LARGEST_HEAD = 1 << 28
LARGEST_ALIGNMENT = 1 << 16
MOST_DIMENSIONS = 4
MOST_ELEMENTS = 1 << 48

_SCALARS: dict[int, np.dtype[Any]] = {
    GGUFValueType.UINT8: np.dtype("<u1"),
    GGUFValueType.INT8: np.dtype("<i1"),
    GGUFValueType.UINT16: np.dtype("<u2"),
    GGUFValueType.INT16: np.dtype("<i2"),
    GGUFValueType.UINT32: np.dtype("<u4"),
    GGUFValueType.INT32: np.dtype("<i4"),
    GGUFValueType.FLOAT32: np.dtype("<f4"),
    GGUFValueType.BOOL: np.dtype("?"),
    GGUFValueType.UINT64: np.dtype("<u8"),
    GGUFValueType.INT64: np.dtype("<i8"),
    GGUFValueType.FLOAT64: np.dtype("<f8"),
}
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies and what it is."""

    name: str
    shape: tuple[int, ...]
    """As torch says it: the last dimension is contiguous. The file has it the other way round."""
    kind: GGMLQuantizationType
    start: int
    """Bytes from the start of the file."""
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Header:
    """The head of a file."""

    path: Path
    values: dict[str, Any]
    """Plain values by key; arrays of numbers are numpy arrays, arrays of strings are lists."""
    tensors: dict[str, StoredTensor]


def read_header(path: str | Path) -> Header:
    """Read and check the head of a GGUF file.

    :raises ModelFolderError: it is not there, not GGUF, truncated, or says what cannot be; one sentence says which.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size < 24:
            raise _damaged(path, f"it has {size} bytes, less than the smallest head")
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _Reader(path, view).header()
    except OSError as error:
        raise ModelFolderError(f"{path} cannot be read: {error.strerror or error}; name a .gguf file") from error


def _damaged(path: Path, what: str) -> ModelFolderError:
    return ModelFolderError(f"{path} is not a usable GGUF file: {what}; fetch or write it again")


class _Reader:
    """Walks the head from its first byte to its last."""

    def __init__(self, path: Path, view: mmap.mmap) -> None:
        self._path, self._view = path, view
        self._size = len(view)
        self._limit = min(self._size, LARGEST_HEAD)
        self._position = 0

    def header(self) -> Header:
        tensors, keys = self._counts()
        values: dict[str, Any] = {}
        for _ in range(keys):
            name = self._name("a key")
            if name in values:
                raise self._error(f"the key {name} is there twice")
            values[name] = self._value(name)
        alignment = self._alignment(values)
        records = [self._record() for _ in range(tensors)]
        start = -(-self._position // alignment) * alignment
        return Header(self._path, values, self._placed(records, start, alignment))

    def _counts(self) -> tuple[int, int]:
        if self._take(4) != MAGIC:
            raise self._error('it does not start with "GGUF"')
        version = self._integer("<I", 4)
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            big = swapped in VERSIONS
            raise self._error(
                "its byte order is big-endian" if big else f"its version is {version}, not {VERSIONS[0]} or {VERSIONS[1]}"
            )
        tensors, keys = self._length(), self._length()
        if tensors > MOST_TENSORS:
            raise self._error(f"it claims {tensors:,} tensors; at most {MOST_TENSORS:,} are read")
        if keys > MOST_KEYS:
            raise self._error(f"it claims {keys:,} keys; at most {MOST_KEYS:,} are read")
        return tensors, keys

    # Values

    def _value(self, key: str) -> Any:
        kind = self._integer("<I", 4)
        if kind == GGUFValueType.STRING:
            return self._string(key, LONGEST_STRING)
        if kind == GGUFValueType.ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise self._error(f"{key} has the unknown type {kind}")
        value = np.frombuffer(self._take(_SCALARS[kind].itemsize), _SCALARS[kind])[0]
        # The shortest decimal of a float32, which is what its writer meant: 1e-05, not 9.999999747378752e-06.
        return float(str(value)) if kind == GGUFValueType.FLOAT32 else value.item()

    def _array(self, key: str) -> Any:
        kind, count = self._integer("<I", 4), self._length()
        if kind == GGUFValueType.STRING:
            return self._strings(key, count)
        if kind not in _SCALARS:
            raise self._error(f"{key} is an array of the type {kind}; arrays of numbers and of strings are read")
        return np.frombuffer(self._take(count * _SCALARS[kind].itemsize), _SCALARS[kind])

    def _strings(self, key: str, count: int) -> list[str]:
        if count > MOST_STRINGS or count * _LENGTH.size > self._limit - self._position:
            raise self._error(f"{key} claims {count:,} strings, more than fit")
        view, position, limit, unpack = self._view, self._position, self._limit, _LENGTH.unpack_from
        found = []
        try:
            for _ in range(count):
                start = position + 8
                position = start + unpack(view, position)[0]
                if position > limit:
                    raise self._error(f"{key} reaches past the end of the file, which may be truncated")
                found.append(view[start:position].decode("utf-8"))
        except struct.error:
            raise self._error(f"{key} reaches past the end of the file, which may be truncated") from None
        except UnicodeDecodeError:
            raise self._error(f"{key} holds a string that is not UTF-8") from None
        self._position = position
        return found

    def _alignment(self, values: dict[str, Any]) -> int:
        alignment = values.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        fits = isinstance(alignment, int) and 0 < alignment <= LARGEST_ALIGNMENT and alignment.bit_count() == 1
        if not fits or isinstance(alignment, bool):
            raise self._error(f"general.alignment is {alignment!r}; it must be a power of two up to {LARGEST_ALIGNMENT:,}")
        return int(alignment)

    # Tensors

    def _record(self) -> StoredTensor:
        """A tensor's record; its start is still counted from the start of the data."""
        name = self._name("a tensor's name")
        dimensions = self._integer("<I", 4)
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise self._error(f"the tensor {name} has {dimensions:,} dimensions; 1 to {MOST_DIMENSIONS} are read")
        shape = tuple(self._length() for _ in range(dimensions))[::-1]
        number, offset = self._integer("<I", 4), self._length()
        if number not in _KINDS:
            raise self._error(f"the tensor {name} has the unknown type {number}")
        kind = _KINDS[number]
        if min(shape) < 1 or math.prod(shape) > MOST_ELEMENTS:
            raise self._error(f"the tensor {name} has the shape {'×'.join(map(str, shape))}, which no model has")
        block, width = GGML_QUANT_SIZES[kind]
        if shape[-1] % block:
            raise self._error(f"the rows of the tensor {name} have {shape[-1]:,} values, not a multiple of {kind.name}'s {block}")
        return StoredTensor(name, shape, kind, offset, math.prod(shape) // block * width)

    def _placed(self, records: list[StoredTensor], start: int, alignment: int) -> dict[str, StoredTensor]:
        """The tensors with their places in the file, which must be inside of it and apart from each other."""
        tensors: dict[str, StoredTensor] = {}
        end = 0
        for record in sorted(records, key=lambda record: record.start):
            if record.name in tensors:
                raise self._error(f"the tensor {record.name} is there twice")
            if record.start % alignment:
                raise self._error(f"the tensor {record.name} starts at {record.start:,}, not a multiple of {alignment}")
            if record.start < end:
                raise self._error(f"the tensor {record.name} overlaps the one before it")
            end = record.start + record.size
            if start + end > self._size:
                raise self._error(
                    f"the tensor {record.name} ends at byte {start + end:,} of {self._size:,}; the file may be truncated"
                )
            tensors[record.name] = StoredTensor(record.name, record.shape, record.kind, start + record.start, record.size)
        return {record.name: tensors[record.name] for record in records}

    # Bytes

    def _take(self, count: int) -> bytes:
        if count > self._limit - self._position:
            where = "the file, which may be truncated" if self._limit == self._size else f"the {LARGEST_HEAD:,} bytes of a head"
            raise self._error(f"its head reaches past the end of {where}")
        taken = self._view[self._position : self._position + count]
        self._position += count
        return taken

    def _integer(self, layout: str, count: int) -> int:
        return int(struct.unpack(layout, self._take(count))[0])

    def _length(self) -> int:
        return self._integer("<Q", 8)

    def _name(self, what: str) -> str:
        return self._string(what, LONGEST_NAME)

    def _string(self, what: str, longest: int) -> str:
        length = self._length()
        if length > longest:
            raise self._error(f"{what} claims {length:,} bytes; at most {longest:,} are read")
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self._error(f"{what} is not UTF-8") from None

    @property
    def _error(self) -> Callable[[str], ModelFolderError]:
        return lambda what: _damaged(self._path, _printable(what))


def _printable(text: str) -> str:
    """A name from the file may hold anything; what is shown on a terminal may not."""
    return "".join(character if character.isprintable() else "?" for character in text[:400])


_KINDS = {int(kind): kind for kind in GGMLQuantizationType if kind in GGML_QUANT_SIZES}
