"""When to look at held-out text, at how much of it, and what was best so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from owngpt.data.batches import Batch

LOOKS = 12
"""Validations of a run under a time budget, if they are cheap enough."""
COST_GUESS = 0.4
"""Of a training step's time for the same tokens: a forward pass is a third of it, with some margin."""


@dataclass
class Best:
    """The lowest held-out loss so far."""

    step: int = -1
    loss: float = math.inf
    """Mean negative log-likelihood per token, in nats."""
    weights: dict[str, Tensor] | None = None
    """A copy, kept from the middle of the run on; None before."""


class Validation:
    """Scores held-out batches now and then, always the same ones, so that losses can be compared.

    Under a time budget their number and how often they are scored are fitted into a share of it. With a fixed
    number of steps all of them are scored every ``interval`` steps, whatever the time, since results must not depend on it.
    """

    def __init__(self, batches: Sequence[Batch], *, interval: int, budget_seconds: float | None, time_share: float) -> None:
        """:param time_share: of the budget that validation may take, the last one included."""
        self._batches = list(batches)
        self._interval = interval
        self._budget, self._time_share = budget_seconds, time_share
        self._chosen = 0 if budget_seconds is not None else len(self._batches)
        self._next_fraction = 1 / LOOKS
        self.spent = 0.0
        """Seconds."""
        self.cost = 0.0
        """Seconds of the latest one, or expected of the first."""

    def is_possible(self) -> bool:
        """Whether there is any held-out text."""
        return bool(self._batches)

    def is_due(self, step: int, fraction: float, token_seconds: float) -> bool:
        """Whether to score after ``step`` steps.

        :param fraction: share of the run that is done.
        :param token_seconds: what training takes for a token.
        """
        if not self._batches:
            return False
        if self._budget is None:
            return step % self._interval == 0
        if fraction < self._next_fraction:
            return False
        if not self._chosen:
            self._choose(token_seconds)
        # The last validation, after the last step, must also fit.
        return self.spent + 2 * self.cost <= self._time_share * self._budget

    def run(
        self, score: Callable[[Sequence[Batch]], float], clock: Callable[[], float], fraction: float, token_seconds: float
    ) -> float:
        """Mean negative log-likelihood per token over the chosen batches, in nats."""
        if not self._chosen:
            self._choose(token_seconds)
        start = clock()
        loss = score(self._subset())
        self.cost = clock() - start
        self.spent += self.cost
        self._next_fraction = (math.floor(fraction * LOOKS + 1e-6) + 1) / LOOKS
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {"chosen": self._chosen, "next_fraction": self._next_fraction, "spent": self.spent, "cost": self.cost}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._chosen = min(int(state["chosen"]), len(self._batches))
        self._next_fraction = float(state["next_fraction"])
        self.spent, self.cost = float(state["spent"]), float(state["cost"])

    def _choose(self, token_seconds: float) -> None:
        """As many batches as can be scored :data:`LOOKS` times within the share; at least one."""
        assert self._budget is not None
        batch_cost = self._batches[0].inputs.numel() * token_seconds * COST_GUESS
        affordable = self._time_share * self._budget / LOOKS / batch_cost if batch_cost > 0 else len(self._batches)
        self._chosen = max(1, min(len(self._batches), int(affordable)))
        self.cost = self._chosen * batch_cost

    def _subset(self) -> list[Batch]:
        """The chosen number of batches, spread evenly."""
        return [self._batches[index * len(self._batches) // self._chosen] for index in range(self._chosen)]
