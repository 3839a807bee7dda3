"""Range checks whose messages name the option, the value and the limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from types import NoneType
from typing import Any, Literal, get_args, get_origin

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


def of_type(name: str, value: Any, hint: Any) -> Any:
    """``value`` as the type that a field's ``hint`` names; raise UsageError where it is of another."""
    try:
        return fitting(value, hint)
    except TypeError as error:
        raise UsageError(f"{option(name)} is {value!r:.100}, but must be {error}") from error


def fitting(value: Any, hint: Any) -> Any:
    """``value`` as the type that a hint names: bool, int, float, str or a Literal of texts, or one of them and None.

    :raises TypeError: it is of another; the message says what it must be.
    """
    kinds = get_args(hint) if NoneType in get_args(hint) else (hint,)
    if value is None and NoneType in kinds:
        return None
    for kind in kinds:
        if get_origin(kind) is Literal and isinstance(value, str) and value in get_args(kind):
            return value
        if kind is bool and isinstance(value, bool):
            return value
        if kind is str and isinstance(value, str):
            return value
        if kind is int and isinstance(value, Integral) and not isinstance(value, bool):
            return int(value)
        if kind is float and isinstance(value, Real) and not isinstance(value, bool):
            return _float(value)
    raise TypeError(" or ".join(_named(kind) for kind in kinds if kind is not NoneType))


def _float(value: Real) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise TypeError("a number that is not so large") from error


def _named(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of: " + ", ".join(map(str, get_args(kind)))
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(kind, str(kind))
