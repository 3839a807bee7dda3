"""llama.cpp itself, for tests; they are skipped where it is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("xllamacpp", reason="llama.cpp is not installed here (pip install xllamacpp)")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from llamacpp import LlamaCpp

__all__ = ["LlamaCpp"]
