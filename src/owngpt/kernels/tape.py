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
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

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
    "small_rows",
    "small_linear",
    "small_gated",
)
"""In the order of the table in source/steps.c."""
KINDS = {name: kind for kind, name in enumerate(STEPS)}
SLOTS = 23
ALIGNMENT = 64
_WORDS, _WORD, _NUMBER = struct.Struct(f"{SLOTS + 1}q"), struct.Struct("q"), struct.Struct("d")
_ZEROS = (0,) * SLOTS
UNUSED = 2
"""References to a buffer that only the pool has: its list and the count itself."""

_active = threading.local()


class NotRecordableError(RuntimeError):
    """The forward pass did something that no step does; the message names it."""


class BufferPool:
    """Memory for the tensors that pass through tapes: what is no longer referred to is used again.

    Tapes that share a pool must not run at the same time.
    """

    def __init__(self, threads: int | None = None) -> None:
        """:param threads: that run the tapes; by default as many as torch uses."""
        self.threads = threads or torch.get_num_threads()
        self._buffers: list[np.ndarray[Any, Any]] = []
        """By their sizes, which are beside them."""
        self._sizes: list[int] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of undefined content, in memory that stays the pool's."""
        used = max(math.prod(shape) * dtype.itemsize, 1)
        index = self._free(used)
        if index is None:
            size = -(-used // ALIGNMENT) * ALIGNMENT
            room = np.empty(size + ALIGNMENT, dtype=np.uint8)
            start = -room.ctypes.data % ALIGNMENT
            index = bisect_right(self._sizes, size)
            self._buffers.insert(index, room[start : start + size])
            self._sizes.insert(index, size)
        # Each tensor holds a reference to the array for as long as it, or a view of it, lives.
        return torch.frombuffer(self._buffers[index], dtype=dtype, count=max(math.prod(shape), 1)).resize_(shape)

    def _free(self, needed: int) -> int | None:
        """The smallest buffer that fits, is not far too large, and that nobody but the pool refers to."""
        for index in range(bisect_left(self._sizes, needed), len(self._sizes)):
            if self._sizes[index] > 4 * needed + 4096:
                return None
            if sys.getrefcount(self._buffers[index]) == UNUSED:
                return index
        return None

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(self._sizes)


class Tape:
    """A list of steps."""

    def __init__(self, pool: BufferPool) -> None:
        self.pool, self.threads = pool, pool.threads
        self._words: list[bytes] = []
        self._kept: list[Any] = []
        self._steps: Any = None

    def empty(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Room for an output."""
        return self.pool.empty(shape, dtype)

    def step(self, name: str, *arguments: Tensor | int | float | None) -> None:
        """Write down one step; arguments as source/*.c lists them: tensors as addresses, None as a null pointer."""
        slots = [argument if type(argument) is int else _slot(argument) for argument in arguments]
        self._kept += [argument for argument in arguments if type(argument) is Parameter]
        self._words.append(_WORDS.pack(KINDS[name], *slots, *_ZEROS[len(slots) :]))

    def __len__(self) -> int:
        return len(self._words)

    @contextmanager
    def record(self, *, guarded: bool = True) -> Iterator[Tape]:
        """Kernels called inside write to this tape.

        :param guarded: watch every operation; without, recording is faster, for a model that was recorded before.
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
        library.run_steps(self._steps, len(self._words), self.threads)


def recording() -> Tape | None:
    """The tape that is active in this thread."""
    return getattr(_active, "tape", None)


def can_record() -> bool:
    """Whether this machine has the kernels of the steps."""
    return library.has_steps()


def _slot(argument: Tensor | int | float | None) -> int:
    if argument is None:
        return 0
    if isinstance(argument, int):
        return argument
    if isinstance(argument, float):
        return int(_WORD.unpack(_NUMBER.pack(argument))[0])
    return argument.data_ptr()


class _NoArithmetic(TorchFunctionMode):
    """Lets pass what looks at a tensor's shape or address or makes a view, and nothing that reads or writes elements.

    What was computed is known by its storage: it is nobody's yet. (A dispatch mode sees more, and imports torch's compiler: 2 s.)
    """

    MAKERS = frozenset(("empty", "from_numpy", "frombuffer"))
    READERS = frozenset((
        "item", "tolist", "numpy", "equal", "allclose", "__bool__", "__int__", "__float__", "__index__", "__contains__",
        "__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "copy_", "add_", "sub_", "mul_", "div_", "fill_",
    ))  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name in self.READERS:
            raise NotRecordableError(f"{name} is not a step that a tape can hold")
        result = func(*args, **(kwargs or {}))
        made = [each for each in (result if isinstance(result, tuple | list) else (result,)) if isinstance(each, Tensor)]
        if made and name not in self.MAKERS:
            known = {_storage(each) for each in _tensors((*args, *(kwargs or {}).values()))}
            if any(_storage(each) not in known for each in made if each.numel()):
                raise NotRecordableError(f"{name} is not a step that a tape can hold")
        return result


def _tensors(arguments: Iterable[Any]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, tuple | list):
            yield from _tensors(argument)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
