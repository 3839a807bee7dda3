"""Range checks whose messages name the option, the value and the limit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from owngpt.errors import UsageError


def option(name: str) -> str:
    """The name as a person types it: ``max_new_tokens`` is ``--max-new-tokens``."""
    return "--" + name.replace("_", "-")


def at_least(name: str, value: float, minimum: float) -> None:
    """Raise UsageError unless ``value`` is finite and not below ``minimum``."""
    if not math.isfinite(value) or value < minimum:
        example = max(1, minimum)
        raise UsageError(f"{option(name)} is {value}, but must be at least {minimum}; for example {option(name)} {example}")


def above(name: str, value: float, limit: float, *, example: float) -> None:
    """Raise UsageError unless ``value`` is finite and strictly more than ``limit``."""
    if not math.isfinite(value) or value <= limit:
        raise UsageError(f"{option(name)} is {value}, but must be more than {limit}; for example {option(name)} {example}")


def within(name: str, value: float, low: float, high: float, *, low_open: bool = False, high_open: bool = False) -> None:
    """Raise UsageError unless ``value`` lies between ``low`` and ``high`` (an open end is excluded)."""
    below = value <= low if low_open else value < low
    over = value >= high if high_open else value > high
    if math.isnan(value) or below or over:
        interval = f"{'more than' if low_open else 'from'} {low} {'to less than' if high_open else 'to'} {high}"
        raise UsageError(f"{option(name)} is {value}, but must be {interval}")


def one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise UsageError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise UsageError(f"{option(name)} is {value!r}, but must be one of: {', '.join(choices)}")
