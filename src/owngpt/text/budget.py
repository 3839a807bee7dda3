"""What one rendering of a stranger's template may cost: time, steps, characters, and how large a value may be written out.

A value is weighed by what writing it out takes. A list that holds another list twice weighs it twice, though the memory
holds it once: sixty doublings cost nothing until something prints, compares or hashes the result.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Any

from jinja2.sandbox import SecurityError

BUDGET = 10_000_000
"""Characters that one rendering may handle, a step counting as :data:`STEP` of them; real templates take under 2 % of it."""
STEP = 20
CALL = 50
"""What a call costs: it may leave an object behind."""
CONTAINER = 100
"""What a new list costs, beside its items."""
SECONDS = 1.0
"""Of processor time: a busy machine does not cut off an honest template."""
LARGEST_INTEGER_BITS = 4096
DEEPEST = 200
"""Levels of lists in lists; the deepest JSON schemas have about ten."""
CLOCK_INTERVAL = 32

_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_CONTAINERS: tuple[type, ...] = (list, tuple, dict, *_VIEWS)


class BudgetError(SecurityError):
    """The template asks for more than any real one."""


class Budget:
    """What one rendering has left."""

    def __init__(self, characters: int = BUDGET, seconds: float = SECONDS) -> None:
        self.left = characters
        self.seconds = seconds
        self._opened = time.perf_counter()
        self._deadline: float | None = None
        self._payments = 0
        self._weights: dict[int, tuple[Any, int, int]] = {}  # by id: the value itself (so that the id stays its own), …

    def pay(self, characters: int) -> None:
        """Take off the cost of what is about to happen.

        :raises BudgetError: there is not enough left.
        """
        self.left -= characters
        if self.left < 0:
            raise BudgetError(f"it needs more than {BUDGET:,} steps and characters")
        self._payments += 1
        if self._payments % CLOCK_INTERVAL == 0 and self._is_late():
            raise BudgetError(f"it runs for more than {self.seconds:g} seconds")

    def _is_late(self) -> bool:
        """Whether the processor's time is used up. Its clock is slow to read, so it starts only once half of the time has
        passed on the wall: a thread cannot have used more than that."""
        if time.perf_counter() - self._opened < self.seconds / 2:
            return False
        now = time.thread_time()
        if self._deadline is None:
            self._deadline = now + self.seconds / 2
        return now > self._deadline

    def weigh(self, value: Any) -> int:
        """About how many characters writing the value out takes.

        :raises BudgetError: more than is left, nested too deeply, or an integer of thousands of digits.
        """
        if isinstance(value, str):
            return len(value)
        if isinstance(value, int):
            check_bits(value.bit_length())
        return self._weighed(value)[0] if isinstance(value, _CONTAINERS) else STEP

    def depth(self, value: Any) -> int:
        """Levels of containers in the value."""
        return self._weighed(value)[1] if isinstance(value, _CONTAINERS) else 0

    def _weighed(self, value: Any) -> tuple[int, int]:
        """Weight and depth of a container."""
        known = self._weights.get(id(value))
        if known is not None:
            return known[1:]
        self.pay(CONTAINER + STEP * len(value))
        weight, depth = 0, 0
        for item in chain.from_iterable(value.items()) if isinstance(value, dict) else value:
            weight += STEP + self.weigh(item)
            depth = max(depth, self.depth(item))
        if depth >= DEEPEST:
            raise BudgetError(f"it nests lists more than {DEEPEST} deep")
        if weight > self.left:
            raise BudgetError(f"it makes a list that takes {weight:,} characters to write out")
        self._weights[id(value)] = (value, weight, depth + 1)
        return weight, depth + 1


_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)


@contextmanager
def spending(budget: Budget) -> Iterator[None]:
    """Everything that a sandboxed template does inside the block is paid from this budget."""
    token = _budget.set(budget)
    try:
        yield
    finally:
        _budget.reset(token)


def pay(characters: int) -> None:
    """Pay from the budget of the rendering that is going on."""
    _current().pay(characters)


def weigh(value: Any) -> int:
    """See :meth:`Budget.weigh`."""
    return _current().weigh(value)


def price(value: Any) -> int:
    """What making or going through a value takes: a text by the character, a list by its items, whatever these hold."""
    weight = weigh(value)  # refuses what could never be written out
    return STEP * len(value) if isinstance(value, list | tuple | dict) else weight


def depth(value: Any) -> int:
    """See :meth:`Budget.depth`."""
    return _current().depth(value)


def check_bits(bits: int) -> None:
    """:raises BudgetError: an integer of so many bits would be absurd."""
    if bits > LARGEST_INTEGER_BITS:
        raise BudgetError(f"it computes an integer of {bits:,} bits")


def _current() -> Budget:
    return _budget.get() or Budget()
