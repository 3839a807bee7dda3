"""What this machine can do at most: the yardsticks that every speed is given as a share of."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

SIZE = 2048
"""Edge of the square matrices that are multiplied: large enough that the product, not its start, is measured."""
READ_BYTES = 512 * 2**20
"""Memory that is read: many times the last-level cache of an ordinary processor."""


def matmul_ceiling(dtype: torch.dtype, seconds: float = 0.5, *, device: str = "cpu") -> float:
    """Floating-point operations a second of ``(2048, 2048) @ (2048, 2048)`` in ``dtype``.

    Repeats the product for about ``seconds`` (three times at least) and takes the median, which a passing
    disturbance does not move. A product of n × n matrices is 2·n³ operations.
    """
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(SIZE, SIZE, generator=generator).to(device=device, dtype=dtype)
    right = torch.randn(SIZE, SIZE, generator=generator).to(device=device, dtype=dtype)
    out = torch.empty_like(left)

    def product() -> None:
        torch.mm(left, right, out=out)
        if device != "cpu":
            out[0, 0].item()  # waits for the device

    return 2.0 * SIZE**3 / _median_seconds(product, seconds)


def read_bandwidth(seconds: float = 0.5) -> float:
    """Bytes a second that all cores together read from memory, from the median of repeated sums of 512 MiB."""
    values = torch.ones(READ_BYTES // 4, dtype=torch.float32)
    return READ_BYTES / _median_seconds(lambda: values.sum(), seconds)


def _median_seconds(work: Callable[[], object], seconds: float) -> float:
    """Median duration of ``work()`` over at least three runs after one to warm up."""
    work()
    durations: list[float] = []
    end = time.perf_counter() + seconds
    while len(durations) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        durations.append(time.perf_counter() - start)
    return statistics.median(durations)
