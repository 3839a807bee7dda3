"""The time of a run, dealt out: so much to measure, so much to learn, so much to save, and all of it within what was named."""

from __future__ import annotations

import time

from owngpt.errors import UsageError
from owngpt.finetune.plan import Recipe
from owngpt.finetune.planner import Facts

MEASURE_SHARE = 0.06
"""Of the budget for each of the two measurements, at most."""
LATE_SHARE = 0.1
"""Of what is left, when the first measurement begins."""
MOST_LATER = 2.0
"""Times the share of a measurement."""
PROBE_SHARE = 0.02
"""Of the budget, for finding out how fast this machine learns."""
REPLAY_SHARE = 0.03
"""Of the budget, for writing text to be reminded by."""
CHOOSE_SHARE = 0.05
"""Of the budget, for choosing how much of what was learned to keep."""
SAVE_SECONDS = 6.0
"""For the adapter or model, the report and its pictures."""
LATER = 1.7
"""Measuring takes so many times longer at the end than at the beginning, at most: answers may be longer, or be written twice."""
MOST_TIMES = 3.0
"""Times what was kept for the last measurement, where a run ends early enough."""
MOST_FOR_REFERENCE = 0.5
"""Of the time to learn in, for asking the base about the answers to compare."""
READING_SPEED = 2.5
"""Reading is so many times faster than learning."""


class Clock:
    """Seconds since the person asked, against those that were named; None where steps or passes decide."""

    def __init__(self, began: float, budget: float | None) -> None:
        """:param began: ``time.monotonic()``."""
        self.began, self.budget = began, budget

    @property
    def elapsed(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self.began

    @property
    def measuring(self) -> float | None:
        """Seconds for the first measurement; less where reading the examples took long."""
        if self.budget is None:
            return None
        return max(0.5, min(MEASURE_SHARE * self.budget, LATE_SHARE * (self.budget - self.elapsed)))

    @property
    def probing(self) -> float:
        """Seconds for finding out how fast this machine learns."""
        return PROBE_SHARE * (self.budget or 0.0)

    @property
    def replaying(self) -> float | None:
        """Seconds for writing general text."""
        return None if self.budget is None else REPLAY_SHARE * self.budget

    def learning(self, measured: float, *, choosing: bool = False) -> float:
        """Seconds that are left to learn in when all that follows has its share.

        :param measured: that the first measurement took.
        :param choosing: whether it is to be chosen how much of what was learned is kept.
        """
        assert self.budget is not None
        choice = CHOOSE_SHARE * self.budget if choosing else 0.0
        return self.budget - self.elapsed - SAVE_SECONDS - choice - self._later(measured)

    def measuring_again(self, measured: float) -> float | None:
        """Seconds for the last measurement: what is left, for answers may be written up to three times until they do not loop."""
        if self.budget is None:
            return None
        return max(0.5, min(MOST_TIMES * self._later(measured), self.budget - self.elapsed - SAVE_SECONDS / 2))

    def _later(self, measured: float) -> float:
        """Seconds kept for the last measurement; one that was slow because the machine was busy is not taken as a measure."""
        assert self.budget is not None
        return min(LATER * measured, MOST_LATER * MEASURE_SHARE * self.budget)

    def check(self, learning: float) -> None:
        """
        :raises UsageError: there is no time to learn in; the message has a time that is enough.
        """
        assert self.budget is not None
        if learning < 1.0:
            raise UsageError(
                f"after reading and measuring {max(learning, 0):.0f} s of {self.budget:.0f} are left to train in; "
                f"give at least --minutes {(self.budget - learning + 10) / 60:.1f}"
            )


def reference_seconds(recipe: Recipe, facts: Facts, speed: float, learning: float) -> float:
    """What asking the base about all answers takes, before anything is trained.

    :param speed: tokens a second while it learns.
    :param learning: seconds that there are.
    :raises UsageError: that is too much, and without an adapter it cannot be asked later.
    """
    needed = facts.tokens / speed / READING_SPEED
    if needed <= MOST_FOR_REFERENCE * learning:
        return needed
    if recipe.lora is not None:
        return 0.0  # it is asked about those that are trained on, with the adapter switched off
    raise UsageError(
        f"--full compares with what the model thought before, which takes {needed / 60:.1f} minutes to find out for "
        f"{facts.examples:,} pairs, too much of the time; use --lora or --method orpo, which need not, or more --minutes"
    )
