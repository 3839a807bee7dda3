"""OwnGPT: from a folder of text to a GPT that you own.

The names below are handed on from :mod:`owngpt.api` when they are first used, so that ``import owngpt`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from owngpt.api import Model, evaluate, load, prepare, train
    from owngpt.errors import OwnGPTError

__version__ = "0.1.0"

__all__ = ["Model", "OwnGPTError", "__version__", "evaluate", "load", "prepare", "train"]

_HOMES = {
    "Model": "owngpt.api",
    "OwnGPTError": "owngpt.errors",
    "evaluate": "owngpt.api",
    "load": "owngpt.api",
    "prepare": "owngpt.api",
    "train": "owngpt.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
