"""What a layer keeps for its backward pass, where its input can be made again from what an earlier step keeps anyway.

A frozen layer needs its input once more, for the gradient of its low-rank update. Where that is a norm's result, the kernel of
that gradient makes it again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from owngpt.kernels.norm import norm_of

_state = threading.local()


def sources_of(x: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """What ``x`` can be made of again, bit for bit (see :func:`owngpt.kernels.norm.norm_of`), or None where it has to be kept."""
    return None if getattr(_state, "suspended", False) else norm_of(x)


@contextmanager
def suspended() -> Iterator[None]:
    """Inside, everything is kept: for a pass whose own results will be thrown away and made again."""
    before = getattr(_state, "suspended", False)
    _state.suspended = True
    try:
        yield
    finally:
        _state.suspended = before
