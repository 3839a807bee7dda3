"""The kernels on processors with and without matrix tiles."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from owngpt.kernels import build, library

STEP = """
import torch
from owngpt.kernels import build, library, norm
build.INSTALLED = build.cache_folder()
assert library.functions() is not None and not library.has_tiles() and not library.has_steps()
assert "rms_norm_again" in library.functions() and "low_rank" not in library.functions()
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


def test_kernels_that_need_tiles_are_known():
    guarded: set[str] = set()
    for source in build.SOURCES.glob("*.c"):
        for block in re.findall(r"#ifdef __AMX_BF16__(.*?)^#endif", source.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            guarded |= set(re.findall(r"^(?:int|void) owngpt_(\w+)\(", block, re.MULTILINE))
    assert guarded & {*library.SIGNATURES, *library.INFERENCE} == set(library.ON_TILES)


@pytest.mark.slow
@pytest.mark.skipif(library.functions() is None, reason="no kernels could be compiled on this machine")
def test_a_processor_without_tiles_has_the_other_kernels_and_learns(tmp_path: Path):
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\nexec {build.compiler()} "$@" -O1 -mno-amx-bf16 -mno-amx-tile -mno-amx-int8\n')
    compiler.chmod(0o755)
    environment = {**os.environ, "CC": str(compiler), "OWNGPT_CACHE": str(tmp_path / "cache")}
    result = subprocess.run([sys.executable, "-c", STEP], env=environment, capture_output=True, text=True, timeout=250)
    assert result.stdout.strip() == "learned", result.stderr
