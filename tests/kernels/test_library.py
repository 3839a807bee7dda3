"""The kernels on processors with fewer instructions than this one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from owngpt.kernels import build, library

WITHOUT_AMX = "-mno-amx-bf16 -mno-amx-tile -mno-amx-int8"
WITHOUT_DOT_PRODUCTS = f"{WITHOUT_AMX} -mno-avx512bf16 -mno-avx512vnni -mno-avx512vbmi"
WITHOUT_WIDE_VECTORS = f"{WITHOUT_AMX} -mno-avx512f"

LEARN = """
import torch
from owngpt.kernels import build, library, norm
build.INSTALLED = build.cache_folder()
assert library.functions() is not None and not library.has_tiles() and not library.has_steps()
assert "add_rms_norm" in library.functions() and "low_rank" not in library.functions()
assert library.functions("inference") is not None

from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.train.optimizer import OptimizerSettings
from owngpt.train.step import TrainModule
from owngpt.data.batches import Batch

config = GPTConfig(
    vocab_size=64, context_length=32, hidden_size=64, layers=2, heads=2, key_value_heads=2, head_size=32, intermediate_size=128
)
model = GPT(config)
module = TrainModule(model, OptimizerSettings("adamw", 1e-2, 1e-2, 1e-2, 1e-2, 0.0, 0.0), dtype=torch.bfloat16)
ids = torch.arange(33)[None].repeat(2, 1)
batch = Batch(ids[:, :-1], ids[:, 1:], None, 0.0)
losses = [module.run([batch], 1.0).loss for _ in range(12)]
assert losses[-1] < losses[0] - 1, losses
print("learned")
"""

CHECK = """
import sys
import pytest
from owngpt.kernels import build, library
build.INSTALLED = build.cache_folder()
assert library.matrix_unit() == library.matrix_unit("inference") == "vectors"
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", *sys.argv[1:]]))
"""

needs_kernels = pytest.mark.skipif(library.functions() is None, reason="no kernels could be compiled on this machine")
needs_tiles = pytest.mark.skipif(not library.has_tiles(), reason="no matrix tiles on this machine")


def environment_without(flags: str, tmp_path: Path) -> dict[str, str]:
    """With a compiler that does not use some instructions, and a cache of its own."""
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\nexec {build.compiler()} "$@" {flags}\n')
    compiler.chmod(0o755)
    return {**os.environ, "CC": str(compiler), "OWNGPT_CACHE": str(tmp_path / "cache")}


def test_kernels_that_need_tiles_are_known():
    guarded: set[str] = set()
    for source in build.SOURCES.glob("*.c"):
        for block in re.findall(r"#ifdef MATRIX_UNIT(.*?)^#endif", source.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            guarded |= set(re.findall(r"^(?:int|void) owngpt_(\w+)\(", block, re.MULTILINE))
    assert guarded & {*library.SIGNATURES, *library.INFERENCE} == set(library.ON_TILES)


@pytest.mark.slow
@needs_kernels
def test_a_processor_without_tiles_has_the_other_kernels_and_learns(tmp_path: Path):
    environment = environment_without(f"-O1 {WITHOUT_WIDE_VECTORS}", tmp_path)
    result = subprocess.run([sys.executable, "-c", LEARN], env=environment, capture_output=True, text=True, timeout=250)
    assert result.stdout.strip() == "learned", result.stderr


@pytest.mark.slow
@needs_tiles
@pytest.mark.parametrize("flags", [WITHOUT_AMX, WITHOUT_DOT_PRODUCTS], ids=["without AMX", "without dot products"])
def test_tiles_made_of_vectors_are_as_good(flags: str, tmp_path: Path):
    files = [str(Path(__file__).with_name(name)) for name in ("test_packed.py", "test_product.py", "test_frozen.py")]
    files.append(str(Path(__file__).parent.with_name("engine") / "test_paged.py"))
    environment = environment_without(f"-O1 {flags}", tmp_path)
    result = subprocess.run([sys.executable, "-c", CHECK, *files], env=environment, capture_output=True, text=True, timeout=250)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " skipped" not in result.stdout, result.stdout
