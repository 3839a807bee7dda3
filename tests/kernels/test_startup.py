"""A program that only writes imports less of torch, and gets the rest when it asks for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from owngpt.kernels import startup

HASTENED = "from owngpt.kernels.startup import DEFERRED, hasten; hasten('inference'); import sys, torch\n"
LATER = "sorted(name for name in DEFERRED if type(sys.modules[name]).__name__ == '_Deferred')"


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", HASTENED + program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_parts_that_writing_does_not_need_are_left_for_later() -> None:
    assert run(f"import owngpt.api; print({LATER} == sorted(DEFERRED))") == "True"


def test_what_was_left_is_there_when_it_is_asked_for() -> None:
    program = f"""
from torch.export import *
assert Dim is torch.export.Dim and "unflatten" in dir(torch.export)
print({LATER})
"""
    assert run(program) == "[]"  # exporting needs to know what operators do to shapes


def test_torchs_compiler_gets_what_it_needs() -> None:
    program = """
class Twice(torch.nn.Module):
    def forward(self, x): return torch.nn.functional.gelu(x) * 2
x, twice = torch.ones(3), Twice()
print(torch.equal(torch.compile(twice, backend="aot_eager")(x), twice(x)))
print(torch.equal(torch.export.export(twice, (x,)).module()(x), twice(x)))
"""
    assert run(program) == "True\nTrue"


def test_what_could_not_be_loaded_can_be_tried_again() -> None:
    program = """
real = sys.modules["torch.export"].__spec__.loader.real
whole = real.exec_module
def fail(module): raise KeyboardInterrupt
real.exec_module = fail
try: torch.export.Dim
except KeyboardInterrupt: real.exec_module = whole
print(torch.export.Dim.__name__)
"""
    assert run(program) == "Dim"


def test_what_is_not_in_a_part_is_said_as_ever() -> None:
    program = "print(hasattr(torch.export, 'no_such_thing'), hasattr(torch._meta_registrations, '__path__'))"
    assert run(program) == "False False"


def test_many_threads_may_ask_at_once() -> None:
    program = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    print(len(set(pool.map(lambda _: torch.export.Dim, range(8)))))
"""
    assert run(program) == "1"


def test_where_torch_was_imported_before_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert torch is not None
    finders = list(sys.meta_path)
    monkeypatch.setattr(startup.gc, "set_threshold", lambda *_: None)
    startup.hasten("inference")
    assert sys.meta_path == finders
