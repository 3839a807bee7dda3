"""What held-out loss to expect of a model of N parameters after D bytes of text, of which U are distinct.

The form is Chinchilla's (arXiv 2203.15556) in bits per byte, with repeated text worth less each time (arXiv 2305.16264).
The constants are fitted by ``benchmarks/scaling.py`` to runs of our own, whose data lie in ``scaling_runs.jsonl`` beside it;
only the differences between candidates matter to the planner, so a text's own entropy need not be known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ScalingLaw:
    """bits per byte = floor + model * N^-model_power + data * effective(D)^-data_power."""

    floor: float
    model: float
    model_power: float
    data: float
    data_power: float
    repeat_half: float
    """Epochs over which the worth of a further epoch falls to 1/e."""
    overfit: float
    """Added bits per byte per (parameters a distinct byte) and epoch beyond the first."""

    def effective_bytes(self, seen: float, distinct: float) -> float:
        """Distinct bytes that would teach as much as ``seen`` bytes drawn from ``distinct`` ones."""
        if seen <= distinct:
            return seen
        repeats = seen / distinct - 1
        return distinct * (1 + self.repeat_half * (1 - math.exp(-repeats / self.repeat_half)))

    def bits_per_byte(self, parameters: float, seen: float, distinct: float) -> float:
        """Expected held-out score; ``parameters`` without the embedding, ``seen`` and ``distinct`` in bytes."""
        effective = self.effective_bytes(seen, distinct)
        repeats = max(0.0, seen / distinct - 1)
        memorised = self.overfit * parameters / distinct * repeats
        return self.floor + self.model * parameters**-self.model_power + self.data * effective**-self.data_power + memorised


LAW = ScalingLaw(floor=0.97, model=9.86, model_power=0.323, data=129.2, data_power=0.377, repeat_half=2.0, overfit=0.004)
