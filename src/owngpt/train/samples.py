"""Now and then the model writes, so that a person sees it learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from owngpt.model.gpt import GPT
from owngpt.train.random_state import random_state, set_random_state

LOOKS = 6
"""Times in a run, at most."""
TIME_SHARE = 0.015
"""Of the run's time, beyond which no further samples are written."""
FIRST_SECONDS = 1.0
"""Expected of the first samples."""

SampleFunction = Callable[[GPT], list[dict[str, Any]]]
"""Lets a model write; returns records with at least ``prompt`` and ``text``."""


class Samples:
    """Decides when to let the model write, and sees to it that this changes nothing of what is learned next."""

    def __init__(self, write: SampleFunction | None, *, budget_seconds: float | None) -> None:
        self._write = write
        self._budget = budget_seconds
        self._cost = FIRST_SECONDS
        self._next_fraction = 1 / LOOKS
        self._spent = 0.0

    def is_due(self, fraction: float, total_seconds: float) -> bool:
        """Whether to write when the share ``fraction`` of a run of ``total_seconds`` is done."""
        if self._write is None or fraction < self._next_fraction:
            return False
        if self._budget is None:
            return self._spent <= TIME_SHARE * total_seconds
        return self._spent + self._cost <= TIME_SHARE * self._budget

    def run(self, model: GPT, clock: Callable[[], float], fraction: float) -> list[dict[str, Any]]:
        """What ``model`` writes."""
        assert self._write is not None
        start = clock()
        self._next_fraction = (math.floor(fraction * LOOKS + 1e-6) + 1) / LOOKS
        device = next(model.parameters()).device
        before = random_state(device)
        model.eval()
        try:
            return self._write(model)
        finally:
            model.train()
            set_random_state(before, device)
            self._cost = clock() - start
            self._spent += self._cost

    def state_dict(self) -> dict[str, float]:
        """Plain numbers, for JSON."""
        return {"next_fraction": self._next_fraction, "spent": self._spent, "cost": self._cost}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._next_fraction, self._spent, self._cost = state["next_fraction"], state["spent"], state["cost"]
