"""How far a run is: by steps, or by the clock when a time was named."""

from __future__ import annotations

from collections.abc import Callable


class Pace:
    """Turns steps or elapsed time into the fraction of the run that is done.

    Under a time budget, everything (training, validation, samples, saving) counts as elapsed, earlier sessions of a
    resumed run included; :attr:`reserve` seconds are kept for what follows the last step.
    """

    def __init__(
        self, *, steps: int, budget_seconds: float | None, clock: Callable[[], float], step_limit: int | None = None
    ) -> None:
        """:param steps: how many to take; at least 1; under a budget an estimate that only the warm-up uses.

        :param clock: monotonic, in seconds.
        :param step_limit: steps after which even a run under a budget is over.
        """
        self.steps = steps
        self.budget_seconds = budget_seconds
        self.step_limit = step_limit
        self.reserve = 0.0
        self.step_seconds = 0.0
        """Recent mean duration of a step."""
        self._clock = clock
        self._origin = clock()
        self._furthest = 0.0
        self._steps_seen = 0

    def begin(self, elapsed_before: float = 0.0) -> None:
        """Starts the clock, with what earlier sessions took already on it."""
        self._origin = self._clock() - elapsed_before

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, over all sessions."""
        return self._clock() - self._origin

    @property
    def _usable(self) -> float:
        """Seconds until the last step must have ended. A reserve larger than half of the budget cannot be honoured."""
        assert self.budget_seconds is not None
        return max(self.budget_seconds - self.reserve, self.budget_seconds / 2, 1e-3)

    def fraction(self, step: int) -> float:
        """Share of the run done before ``step`` (counted from 0) begins, 0 to 1; never falls when the reserve is corrected."""
        if self.budget_seconds is None:
            return min(step / self.steps, 1.0)
        share = step / self.step_limit if self.step_limit else 0.0
        self._furthest = max(self._furthest, min(max(self.elapsed / self._usable, share), 1.0))
        return self._furthest

    def is_over(self, step: int) -> bool:
        """Whether no further step should begin: under a budget, when it would end more than half a step late."""
        if self.budget_seconds is None:
            return step >= self.steps
        if self.step_limit is not None and step >= self.step_limit:
            return True
        return self.elapsed + self.step_seconds / 2 >= self._usable

    def progress(self, step: int, warmup: float) -> float:
        """Where the learning-rate schedule is, 0 to 1, for the step that follows ``step`` others.

        Under a budget the clock decides, except that a warm-up (the share ``warmup``) ends no later than the estimated
        number of steps says, however fast they were.
        """
        if self.budget_seconds is None:
            return self.fraction(step)
        return max(self.fraction(step), min(step / self.steps, warmup))

    def seconds_left(self, step: int) -> float:
        """Until the last step ends."""
        if self.budget_seconds is not None:
            left = max(0.0, self._usable - self.elapsed)
            return left if self.step_limit is None else min(left, (self.step_limit - step) * self.step_seconds)
        return (self.steps - step) * self.step_seconds

    def step_took(self, seconds: float) -> None:
        """Follows the duration of steps (mean over about ten). The first one, which warms everything up, is forgotten."""
        self._steps_seen += 1
        known = self._steps_seen > 2
        self.step_seconds = self.step_seconds + 0.1 * (seconds - self.step_seconds) if known else seconds

    def total_seconds(self, step: int) -> float:
        """Expected length of the whole run."""
        return self.budget_seconds if self.budget_seconds is not None else self.elapsed + self.seconds_left(step)
