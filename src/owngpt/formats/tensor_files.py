"""The safetensors files of a model folder, mapped into memory: bytes are read on first touch, and can be let go of again."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from owngpt.config.json_files import read_json_object
from owngpt.errors import ModelFolderError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAXIMUM_INDEX_BYTES = 64 << 20
MOST_FILES = 10_000
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8,
}  # fmt: skip
"""What models are made of. Other element types have a name and a shape but are not read."""


class MappedFile:
    """One safetensors file, mapped copy-on-write: tensors may be written to, the file never changes."""

    def __init__(self, path: Path) -> None:
        """
        :raises ModelFolderError: the file is missing, damaged or not safetensors.
        """
        try:
            with safetensors.safe_open(path, framework="numpy"):  # checks sizes, offsets and overlaps
                pass
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header: dict[str, Any] = json.loads(file.read(size))
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise ModelFolderError(f"{path} is missing, damaged or not safetensors ({error}); copy the folder again") from error
        header.pop("__metadata__", None)
        self._start = 8 + size
        self.entries = header

    def read(self, name: str) -> Tensor:
        """A tensor that lies in the mapping; it keeps the mapping alive."""
        entry = self.entries[name]
        begin, end = entry["data_offsets"]
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        if begin == end:
            return torch.empty(shape, dtype=dtype)
        offset, misaligned = self._start + begin, (self._start + begin) % dtype.itemsize
        if misaligned:  # rare: writers pad their headers
            return torch.frombuffer(bytearray(self._map[offset : self._start + end]), dtype=dtype).view(shape)
        return torch.frombuffer(self._map, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=offset).view(shape)

    def release(self, name: str) -> None:
        """Give back the memory of a tensor's pages; they are read again when touched. What was written to them is lost."""
        begin, end = (self._start + place for place in self.entries[name]["data_offsets"])
        first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)


class TensorFiles:
    """The tensors of a folder: a :class:`owngpt.formats.weights.TensorSource`."""

    def __init__(self, folder: Path) -> None:
        """
        :raises ModelFolderError: there are no weights, or a file is damaged.
        """
        self.path = folder
        self._files: dict[str, MappedFile] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for path in _weight_files(folder):
            file = MappedFile(path)
            for name, entry in file.entries.items():
                if name in self.shapes:
                    raise ModelFolderError(f"{path}: {name} is stored twice in this folder")
                self._files[name] = file
                self.shapes[name] = tuple(entry["shape"])
                self.dtypes[name] = entry["dtype"]

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored, in the mapped file."""
        return self._files[name].read(name)

    def release(self, name: str) -> None:
        """See :meth:`MappedFile.release`."""
        self._files[name].release(name)


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    index = folder / INDEX_FILE
    if index.is_file():
        return _shards(folder, index)
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    if pickled:
        raise ModelFolderError(
            f"{folder} has its weights in {pickled[0]}, a pickle, which can run any program when it is opened and is not "
            "read; open it with transformers where you trust it and save it again with save_pretrained(), which writes "
            f"{WEIGHTS_FILE}"
        )
    raise ModelFolderError(f"{folder} has no {WEIGHTS_FILE}; name a model folder")


def _shards(folder: Path, index: Path) -> list[Path]:
    """The files that an index names, each a plain name in this folder."""
    weight_map = read_json_object(index, MAXIMUM_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelFolderError(f"{index} is not an index of weights; copy the folder again")
    names = list(weight_map.values())
    for name in names:
        # No path, in the spelling of any system; "." and ".." do not end in .safetensors.
        if not isinstance(name, str) or not name.endswith(".safetensors") or set(name) & set("/\\:\0"):
            raise ModelFolderError(f"{index} names {str(name)[:200]!r}, which is not a safetensors file of this folder")
    if len(set(names)) > MOST_FILES:
        raise ModelFolderError(f"{index} names {len(set(names)):,} files; at most {MOST_FILES:,} are opened")
    return [folder / name for name in sorted(set(names))]
