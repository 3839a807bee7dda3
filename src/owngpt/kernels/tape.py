"""An inference pass as a recorded list of steps that one call runs.

Between two matrix products of a small model lie a few microseconds of work, less than Python and the start of threads cost.
So the forward pass of the model is run once with a tape active: each kernel writes down what it would do, with the addresses of
its inputs and outputs, instead of doing it. Running the tape does it all inside one parallel region; running it again, after
the input buffers were refilled, is the next decoding step. A CUDA graph does the same for a GPU.

While a tape is active nothing may look into the tensors that pass by: they are addresses only. Whatever PyTorch computes by
itself would read memory that is not written yet, so :meth:`Tape.record` refuses it.
"""

from __future__ import annotations

import math
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from owngpt.kernels import library

STEPS = (
    "pack_rows",
    "linear",
    "embed",
    "norm",
    "rotate",
    "gated",
    "pointwise",
    "gather",
    "append",
    "attend",
    "add",
    "gated_linear",
)
"""In the order of the table in source/steps.c."""
KINDS = {name: kind for kind, name in enumerate(STEPS)}
SLOTS = 23
ALIGNMENT = 64
UNUSED = 2
"""References to a buffer that only the pool has: its list and the count itself."""

_active = threading.local()


class NotRecordableError(RuntimeError):
    """The forward pass did something that no step does; the message names it."""


class BufferPool:
    """Memory for the tensors that pass through tapes: what is no longer referred to is used again.

    Tapes that share a pool must not run at the same time.
    """

    def __init__(self) -> None:
        self._buffers: list[np.ndarray[Any, Any]] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of undefined content, in memory that stays the pool's."""
        used = max(math.prod(shape) * dtype.itemsize, 1)
        index = self._free(used)
        if index is None:
            room = np.empty(-(-used // ALIGNMENT) * ALIGNMENT + ALIGNMENT, dtype=np.uint8)
            start = -room.ctypes.data % ALIGNMENT
            self._buffers.append(room[start : start + -(-used // ALIGNMENT) * ALIGNMENT])
            index = len(self._buffers) - 1
        # Each tensor holds a reference to the array for as long as it, or a view of it, lives.
        return torch.from_numpy(self._buffers[index])[: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)

    def _free(self, needed: int) -> int | None:
        """The smallest buffer that fits, is not far too large, and that nobody but the pool refers to."""
        best = None
        for index in range(len(self._buffers)):
            size = self._buffers[index].nbytes
            fits = needed <= size <= 4 * needed + 4096
            if fits and (best is None or size < self._buffers[best].nbytes) and sys.getrefcount(self._buffers[index]) == UNUSED:
                best = index
        return best

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(buffer.nbytes for buffer in self._buffers)


class Tape:
    """A list of steps."""

    def __init__(self, pool: BufferPool) -> None:
        self.pool = pool
        self._words: list[bytes] = []
        self._kept: list[Any] = []
        self._steps: Any = None

    def empty(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Room for an output."""
        return self.pool.empty(shape, dtype)

    def step(self, name: str, *arguments: Tensor | int | float | None) -> None:
        """Write down one step; arguments as source/*.c lists them: tensors as addresses, None as a null pointer."""
        slots = [KINDS[name], *(_slot(argument) for argument in arguments)]
        self._kept += [argument for argument in arguments if isinstance(argument, torch.nn.Parameter)]
        self._words.append(struct.pack(f"{SLOTS + 1}q", *slots, *([0] * (SLOTS + 1 - len(slots)))))

    def __len__(self) -> int:
        return len(self._words)

    @contextmanager
    def record(self, *, guarded: bool = True) -> Iterator[Tape]:
        """Kernels called inside write to this tape.

        :param guarded: watch every operation; without, recording is several times faster, for a model that was recorded before.
        :raises NotRecordableError: something inside computes by itself.
        """
        assert recording() is None, "a tape is active already"
        _active.tape = self
        try:
            with torch.inference_mode(), _NoArithmetic() if guarded else nullcontext():
                yield self
        finally:
            _active.tape = None
        self._steps = b"".join(self._words)

    def run(self) -> None:
        """Do all steps with the present contents of the input buffers."""
        library.run_steps(self._steps, len(self._words))


def recording() -> Tape | None:
    """The tape that is active in this thread."""
    return getattr(_active, "tape", None)


def can_record() -> bool:
    """Whether this machine has the kernels of the steps."""
    return library.has_tiles()


def _slot(argument: Tensor | int | float | None) -> int:
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    if isinstance(argument, float):
        return int(struct.unpack("q", struct.pack("d", argument))[0])
    return 0 if argument is None else int(argument)


class _NoArithmetic(TorchDispatchMode):
    """Lets views and empty tensors pass, and nothing that reads or writes elements."""

    HARMLESS = frozenset((
        "aten::empty", "aten::view", "aten::_unsafe_view", "aten::slice", "aten::select", "aten::as_strided", "aten::expand",
        "aten::unsqueeze", "aten::squeeze", "aten::split", "aten::split_with_sizes", "aten::transpose", "aten::t", "aten::alias",
        "aten::detach", "aten::unflatten", "aten::permute", "aten::_reshape_alias", "aten::view_as", "aten::view.dtype",
    ))  # fmt: skip

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = func._schema.name
        if name not in self.HARMLESS and not func.is_view:
            raise NotRecordableError(f"{name} is not a step that a tape can hold")
        return func(*args, **(kwargs or {}))
