"""The first seconds of a program that writes, made shorter. Called before torch is imported, which takes most of them."""

from __future__ import annotations

import gc
import importlib.machinery
import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from owngpt.kernels import build

COLLECT_AFTER = (50_000, 20, 100)
"""Objects and rounds between runs of the garbage collector. An import makes objects that stay, and looking at them again and
again takes an eighth of torch's import."""
SHAPES = "torch._meta_registrations"
DEFERRED = frozenset((SHAPES, "torch.export"))
"""Parts of torch that only its compiler needs, a third of its import: what operators do to shapes, and programs as graphs."""
COMPILER = ("torch._dynamo", "torch._inductor", "torch._functorch.aot_autograd", "torch._export", "torch.export.")
"""Whoever imports one of these needs what operators do to shapes, without asking for it by name."""
IMPORT_ASKS_FOR = frozenset(("__path__", "__file__", "__cached__", "__loader__", "__package__", "__spec__", "__wrapped__"))

_loading = threading.RLock()


def hasten(library: str) -> None:
    """Compile a library of kernels meanwhile, where that was never done, collect garbage less often, and import the parts of
    torch in :data:`DEFERRED` when something of theirs is first asked for."""
    build.start(library)
    gc.set_threshold(*COLLECT_AFTER)
    if "torch" not in sys.modules:
        sys.meta_path.insert(0, _Finder(DEFERRED))


class _Finder(MetaPathFinder):
    """Answers once for each of its modules."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = set(names)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.startswith(COMPILER) and SHAPES in sys.modules:
            _load(sys.modules[SHAPES])
        if name not in self._names:
            return None
        self._names.discard(name)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Later(spec.loader)
        return spec


class _Later(Loader):
    """Makes a module that is empty until something of it is asked for."""

    def __init__(self, real: Loader) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Deferred(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing yet."""


class _Deferred(ModuleType):
    def __getattr__(self, name: str) -> Any:
        """Called for what is not there yet."""
        if name not in IMPORT_ASKS_FOR and _load(self):
            return getattr(self, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        _load(self)
        return sorted(vars(self))


def _load(module: ModuleType) -> bool:
    """Whether all of it is there now: not while this very thread is at it.

    A thread that imports something must not wait here for one that holds this lock and imports the same; a program that only
    writes asks for nothing of this.
    """
    with _loading:
        spec = module.__spec__
        if type(module) is not _Deferred or spec is None:
            return True
        if not isinstance(spec.loader, _Later):
            return False
        later = spec.loader
        spec.loader = module.__loader__ = later.real
        try:
            later.real.exec_module(module)
        except BaseException:
            spec.loader = module.__loader__ = later  # to be tried again
            raise
        module.__class__ = ModuleType  # type: ignore[assignment]
        return True
