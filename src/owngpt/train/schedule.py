"""The learning rate over a run: warm-up, stable, decay (arXiv 2404.06395)."""

from __future__ import annotations


def learning_rate_scale(progress: float, *, warmup: float, decay: float, floor: float = 0.0) -> float:
    """Factor on every learning rate when the share ``progress`` in [0, 1] of the run is done.

    Rises linearly over the first share ``warmup``, stays at 1, falls linearly to ``floor`` over the last share ``decay``.
    Working in shares lets one schedule serve a number of steps as well as a number of minutes.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return (progress / warmup) * 0.95 + 0.05
    if progress > 1.0 - decay:
        return floor + (1.0 - floor) * (1.0 - progress) / decay
    return 1.0
