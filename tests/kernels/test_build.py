"""Kernels compiled when the package is installed are found; where they are not, the first use compiles them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from owngpt.kernels import build, library

missing = build.hindrance() or (None if build.compiler() else "no C compiler on this machine")
needs_compiler = pytest.mark.skipif(missing is not None, reason=str(missing))


def load_in_new_process(installed: Path, **environment: str) -> str:
    """What a new process says of the library it loads, its file first."""
    code = (
        "import torch; from pathlib import Path; from owngpt.kernels import build;"
        f"build.INSTALLED = Path({str(installed)!r});"
        "build.start('inference'); library, how = build.load('inference'); print(library and library._name, how)"
    )
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as an installation leaves it, with a library of another version in it before."""
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "owngpt-inference-0000000000000000.so").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(build.LIBRARIES, "training")  # it takes three times as long to compile, and is no other case
        assert build.install(folder) == ["inference"]
    return folder


@needs_compiler
def test_tile_registers_are_used_only_where_the_operating_system_grants_them():
    if library.functions() is None:
        pytest.skip("no kernels could be compiled on this machine")
    assert (library.matrix_unit() == "amx") == build._grants_tile_registers()


def test_installing_compiles_and_removes_those_of_other_versions(installed: Path):
    assert len(list(installed.glob("owngpt-inference-*.so"))) == 1
    assert not (installed / "owngpt-inference-0000000000000000.so").exists()


@needs_compiler
@pytest.mark.parametrize("path", ["/usr/bin:/bin", "/nowhere"], ids=["with a compiler", "without one"])
def test_what_was_installed_is_loaded_and_nothing_is_compiled(installed: Path, tmp_path: Path, path: str):
    said = load_in_new_process(installed, PATH=path, OWNGPT_CACHE=str(tmp_path))
    assert said.startswith(str(installed))
    assert not list(tmp_path.rglob("*.so"))


@needs_compiler
def test_without_installed_kernels_the_first_use_compiles_them_into_the_cache(tmp_path: Path):
    said = load_in_new_process(tmp_path / "nothing", PATH="/usr/bin:/bin", OWNGPT_CACHE=str(tmp_path))
    assert said.startswith(str(tmp_path / "kernels" / "owngpt-inference-"))


@needs_compiler
def test_without_kernels_and_compiler_the_reason_is_said(tmp_path: Path):
    said = load_in_new_process(tmp_path / "nothing", PATH="/nowhere", OWNGPT_CACHE=str(tmp_path))
    assert said.startswith("None no C compiler found; install gcc")


def test_kernels_that_are_switched_off_are_not_compiled_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OWNGPT_KERNELS", "off")
    assert build.install(tmp_path / "compiled") == []
    assert not (tmp_path / "compiled").exists()
