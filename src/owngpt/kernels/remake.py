"""What a layer keeps for its backward pass, where its input can be made again from what an earlier step keeps anyway.

A frozen layer needs its input once more, for the gradient of its low-rank update. Where that is a norm's result, making it again
takes some thousandths of a step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from owngpt.kernels.norm import norm_again, norm_of

_state = threading.local()


@dataclass(frozen=True)
class Recipe:
    """How a tensor is made, bit for bit."""

    sources: tuple[Tensor, ...]
    make: Callable[..., Tensor]
    """Called with the sources."""


def recipe_of(x: Tensor) -> Recipe | None:
    """How ``x`` can be made again, or None where it has to be kept."""
    if getattr(_state, "suspended", False):
        return None
    if (sources := norm_of(x)) is not None:
        return Recipe(sources, norm_again)
    return None


@contextmanager
def suspended() -> Iterator[None]:
    """Inside, everything is kept: for a pass whose own results will be thrown away and made again."""
    before = getattr(_state, "suspended", False)
    _state.suspended = True
    try:
        yield
    finally:
        _state.suspended = before
