"""When a training step must not be taken: a loss or gradient that is not finite, or a sudden spike.

A spike is a loss far above the recent ones *and* a gradient far larger than the recent ones; either alone happens in
healthy training (an unusual batch; the first steps after a warm-up). Skipping such batches is what PaLM did
(arXiv 2204.02311, section 5.1).
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

WINDOW = 64
"""Steps that recent means."""
LEAST = 16
"""Steps to have seen before anything can be called a spike."""
DEVIATIONS = 6.0
"""Standard deviations above the recent mean loss."""
NORM_FACTOR = 10.0
"""Times the recent median gradient norm."""


class SpikeDetector:
    """Sets limits for each step by the losses and gradient norms before it; its state is part of a checkpoint."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._norms: deque[float] = deque(maxlen=WINDOW)

    def limits(self) -> tuple[float, float]:
        """(loss, gradient norm) that the next step may not both exceed; infinite while too little was seen.

        The loss is a mean negative log-likelihood per token in nats, the norm is L2 over all parameters before clipping.
        """
        if len(self._losses) < LEAST:
            return math.inf, math.inf
        mean = math.fsum(self._losses) / len(self._losses)
        variance = math.fsum((loss - mean) ** 2 for loss in self._losses) / len(self._losses)
        return mean + DEVIATIONS * math.sqrt(variance), NORM_FACTOR * statistics.median(self._norms)

    def record(self, loss: float, gradient_norm: float) -> None:
        """Remembers a step that was taken."""
        self._losses.append(loss)
        self._norms.append(gradient_norm)

    def recent(self) -> str:
        """The recent losses and norms in words, for a diagnosis."""
        if not self._losses:
            return "no step was taken before"
        last = min(5, len(self._losses))
        losses = ", ".join(f"{value:.3f}" for value in list(self._losses)[-last:])
        norms = ", ".join(f"{value:.3g}" for value in list(self._norms)[-last:])
        return f"the last {last} good steps had losses {losses} and gradient norms {norms}"

    def state_dict(self) -> dict[str, Any]:
        """Plain lists of floats, for JSON."""
        return {"losses": list(self._losses), "norms": list(self._norms)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._losses = deque(state["losses"], maxlen=WINDOW)
        self._norms = deque(state["norms"], maxlen=WINDOW)
