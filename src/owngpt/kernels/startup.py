"""The first seconds of a program that writes, made shorter. Called before torch is imported, which takes most of them."""

from __future__ import annotations

import gc

from owngpt.kernels import build

COLLECT_AFTER = (50_000, 20, 100)
"""Objects and rounds between runs of the garbage collector. An import makes objects that stay, and looking at them again and
again takes an eighth of torch's import."""


def hasten(library: str) -> None:
    """Compile a library of kernels meanwhile, where that was never done, and collect garbage less often."""
    build.start(library)
    gc.set_threshold(*COLLECT_AFTER)
