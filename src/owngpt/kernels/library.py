"""The compiled kernels as Python calls: tensors in, pointers out, one place for argument types."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from owngpt.kernels import build

_P, _L, _I, _F, _U = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float, ctypes.c_uint32

MatrixUnit = Literal["none", "vectors", "amx"]
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "add_rms_norm": (_P, _P, _P, _P, _P, _P, _L, _L, _F, _U, _F, _U, _I),
    "add_rms_norm_backward": (_P, _P, _P, _P, _P, _P, _P, _P, _L, _L, _U, _F, _U, _I),
    "add_layer_norm": (_P, _P, _P, _P, _P, _P, _P, _P, _L, _L, _F, _I),
    "add_layer_norm_backward": (_P, _P, _P, _P, _P, _P, _P, _P, _L, _L, _I),
    "column_sums": (_P, _P, _L, _L, _I),
    "rotate": (_P, _P, _P, _P, _P, _P, _P, _I, _P, _L, _I, _I, _I, _I, _F, _I),
    "rotate_backward": (_P, _L, _P, _L, _P, _L, _P, _P, _P, _P, _P, _P, _P, _P, _P, _L, _I, _I, _I, _I, _I),
    "attention": (_P, _L, _P, _L, _P, _L, _P, _P, _P, _I, _I, _I, _I, _I, _I, _F, _I),
    "attention_backward": (_P, _L, _P, _L, _P, _L, _P, _P, _P, _P, _P, _P, _L, _P, _I, _I, _I, _I, _I, _I, _F, _I),
    "product": (_P, _L, _I, _P, _L, _I, _P, _P, _L, _L, _L, _L, _I),
    "pack_frozen": (_P, _L, _I, _L, _L, _P, _I),
    "pack_frozen_int8": (_P, _P, _L, _L, _I, _P, _I),
    "frozen_product": (_P, _P, _P, _P, _L, _L, _L, _I),
    "low_rank": (_P, _I, _P, _P, _P, _P, _I, _P, _L, _L, _F, _P, _P, _L, _L, _L, _I),
    "low_rank_backward": (_P, _P, _I, _P, _P, _P, _P, _P, _P, _I, _P, _L, _L, _F, _P, _P, _P, _L, _L, _L, _I),
    "orthogonalise": (_P, _P, _L, _L, _L, _P, _I, _I),
    "swiglu": (_P, _P, _L, _L, _I),
    "swiglu_backward": (_P, _P, _P, _L, _L, _I),
    "gelu": (_P, _P, _L, _I),
    "gelu_backward": (_P, _P, _P, _L, _I),
    "relu2": (_P, _P, _L, _I),
    "relu2_backward": (_P, _P, _P, _L, _I),
    "cross_entropy": (_P, _P, _P, _L, _L, _L, _F, _I, _I),
    "adamw": (_P, _P, _P, _P, _P, _P, _L, _F, _F, _F, _F, _F, _F, _F, _F, _I),
    "momentum": (_P, _P, _P, _P, _L, _F, _F, _I),
    "apply": (_P, _P, _P, _L, _F, _F, _I),
}
INFERENCE: dict[str, tuple[Any, ...]] = {
    "sample": (_P, _P, _P, _L, _L, _I),
    "pack": (_P, _I, _L, _L, _I, _P, _I),
    "join_groups": (_P, _P, _P, _L, _L, _P, _I),
    "pack_compact": (_P, _I, _L, _L, _P, _L, _P, _I),
    "widen": (_P, _I, _L, _L, _P, _I),
}
"""Of the library for inference; its steps are reached through :func:`run_steps`."""
ON_TILES = (
    "attention", "attention_backward", "product", "pack_frozen", "pack_frozen_int8", "frozen_product", "low_rank",
    "low_rank_backward", "orthogonalise", "pack", "join_groups", "pack_compact", "widen",
)  # fmt: skip
"""Present only where there is a matrix unit; they return 0, or 1 when there was no memory."""


@cache
def functions(name: str = "training") -> dict[str, Any] | None:
    """A library's kernels: name → callable with declared argument types, or None where it could not be built."""
    library, _ = build.load(name)
    if library is None:
        return None
    found = {}
    for entry, arguments in (INFERENCE if name == "inference" else SIGNATURES).items():
        function = getattr(library, f"owngpt_{entry}", None)
        if function is None:
            assert entry in ON_TILES, entry
            continue
        function.argtypes = arguments
        function.restype = ctypes.c_int if entry in ON_TILES else None
        found[entry] = function
    return found


@cache
def matrix_unit(name: str = "training") -> MatrixUnit:
    """What multiplies matrices, see source/tiles.h: AMX registers, where the operating system grants them, or vectors."""
    library, _ = build.load(name)
    units: tuple[MatrixUnit, ...] = ("none", "vectors", "amx")
    return "none" if library is None else units[library.owngpt_matrix_unit()]


def has_tiles() -> bool:
    """Whether there is a matrix unit, of whatever it is made (attention needs one)."""
    return matrix_unit() != "none"


def available(*tensors: Tensor) -> bool:
    """Whether the kernels can take these tensors: on the CPU, bfloat16, and a library that loaded."""
    return all(tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16 for tensor in tensors) and functions() is not None


def call(name: str, *arguments: Any) -> None:
    """Run one kernel; tensors pass as pointers, None as NULL, and the thread count comes last by itself.

    Raises MemoryError when a kernel could not get its workspace.
    """
    table = functions("inference" if name in INFERENCE else "training")
    assert table is not None
    values = [argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments]
    status = table[name](*values, torch.get_num_threads())
    if status:
        raise MemoryError(f"kernel {name} found no memory for its workspace")


def status() -> dict[str, Any]:
    """For ``owngpt doctor``: what runs, and why."""
    library, reason = build.load("training")
    return {"compiled": library is not None, "unit": matrix_unit(), "inference": has_steps(), "reason": reason}


NO_MEMORY = 2
"""What running steps returns then, see source/steps.c."""


@cache
def _runner_of_steps() -> Any:
    """The function that runs a tape, or None: it needs a matrix unit."""
    library, _ = build.load("inference")
    if library is None or matrix_unit("inference") == "none":
        return None
    function = library.owngpt_run_steps
    function.argtypes, function.restype = (_P, _L, _I), ctypes.c_int
    return function


def has_steps() -> bool:
    """Whether tapes can run here."""
    return _runner_of_steps() is not None


def run_steps(steps: bytes, count: int, threads: int) -> None:
    """Run a tape: ``count`` steps of 24 words each, see source/steps.h.

    Raises MemoryError when there is none for the threads' counters.
    """
    status = _runner_of_steps()(steps, count, threads)
    if status == NO_MEMORY:
        raise MemoryError("no memory to share a step's work among threads")
    assert status == 0, "a tape names a step that the library does not have"
