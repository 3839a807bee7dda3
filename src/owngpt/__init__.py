"""OwnGPT: from a folder of text to a GPT that you own.

The names below are handed on from :mod:`owngpt.api` when they are first used, so that ``import owngpt`` costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from owngpt.api import Model, evaluate, export, finetune, load, prepare, pull, train
    from owngpt.errors import OwnGPTError

__version__ = "0.1.0"

__all__ = ["Model", "OwnGPTError", "__version__", "evaluate", "export", "finetune", "load", "prepare", "pull", "train"]

_HOMES = {
    "Model": "owngpt.api",
    "OwnGPTError": "owngpt.errors",
    "evaluate": "owngpt.api",
    "export": "owngpt.api",
    "finetune": "owngpt.api",
    "load": "owngpt.api",
    "prepare": "owngpt.api",
    "pull": "owngpt.api",
    "train": "owngpt.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "load":  # whoever loads a model will want the kernels, which compile, the first time, while torch is imported
        import_module("owngpt.kernels.build").start("inference")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """``owngpt.train`` is the function, whichever order things are imported in.

    Importing a module of the room of the same name would otherwise put that room into the function's place.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)
