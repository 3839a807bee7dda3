"""Operations of a template whose result, or whose time, can be far larger than what they are given: paid for, or refused."""

from __future__ import annotations

import re
from typing import Any

from owngpt.text.budget import STEP, BudgetError, check_bits, depth, pay, price, weigh

LARGEST_WIDTH = 10_000
"""Widths, counts and the like that a template may pass to a filter or a string method."""
LONGEST_INDENT = 16

_TAKES_WIDTH = frozenset({
    "center", "ljust", "rjust", "zfill", "indent", "batch", "slice", "truncate", "wordwrap", "round", "filesizeformat",
})  # fmt: skip
_QUADRATIC = frozenset({"striptags", "urlize", "wordwrap", "xmlattr"})
_SLOW = frozenset({"title", "wordcount", "urlencode", "pprint"})
_SORTING = frozenset({"sort", "unique", "groupby", "dictsort", "min", "max"})
_STRIPPING = frozenset({"strip", "lstrip", "rstrip", "trim"})
_NUMBER = re.compile(r"\d+")
_NESTED_FIELD = re.compile(r"\{[^{}]*\{")


def check_growth(name: str, subject: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Pay for a method or filter by what it may make of its subject.

    :raises BudgetError: it is too much.
    """
    values = (*args, *kwargs.values())
    size = weigh(subject)
    longest = max((len(value) for value in values if isinstance(value, str)), default=0)
    if name in _TAKES_WIDTH:
        _check_width(name, values)
    if name in _QUADRATIC:
        pay(size * (size // 64 + longest))
    elif name in _SORTING or name in _SLOW:
        pay(8 * size)
    elif name in _STRIPPING:
        pay(size * longest // 64)
    elif name in ("split", "rsplit", "splitlines", "list"):
        pay(2 * size)
    elif name in _SPECIFIC:
        _SPECIFIC[name](subject, args, kwargs)


def check_format(text: str, values: Any) -> None:
    """The operator ``%`` and ``str.format``."""
    pay(4 * len(text))
    if "*" in text or _NESTED_FIELD.search(text):
        raise BudgetError("it formats with a width that is computed")
    widths = [int(number) if len(number) < 6 else 1 << 30 for number in _NUMBER.findall(text)]
    if max(widths, default=0) > LARGEST_WIDTH:
        raise BudgetError("it formats with a width of many digits")
    fields = text.count("%") + text.count("{")
    pay(sum(widths) + fields * weigh(values))


def check_product(left: Any, right: Any) -> None:
    """The operator ``*``."""
    if isinstance(left, int) and isinstance(right, int):
        check_bits(left.bit_length() + right.bit_length())
    elif isinstance(left, int) or isinstance(right, int):
        count, items = (left, right) if isinstance(left, int) else (right, left)
        pay(STEP + max(count, 0) * price(items))


def check_power(left: Any, right: Any) -> None:
    """The operator ``**``."""
    if isinstance(left, int) and isinstance(right, int):
        check_bits(left.bit_length() * max(right, 0))


def _check_width(name: str, values: tuple[Any, ...]) -> None:
    for number in values:
        if isinstance(number, int) and abs(number) > LARGEST_WIDTH:
            raise BudgetError(f"it passes {number} to {name}")


def _pay_replace(subject: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if isinstance(subject, str):
        old, new = ([str(value) for value in (*args, *kwargs.values())] + ["", ""])[:2]
        pay(subject.count(old) * len(new))


def _pay_join(subject: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """``glue.join(items)`` and ``items|join(glue)``."""
    glue = args[0] if args else next(iter(kwargs.values()), "")
    items = subject
    if isinstance(subject, str) and not isinstance(glue, str):
        glue, items = subject, glue
    count = len(items) if hasattr(items, "__len__") else 0
    pay(count * len(str(glue)) + weigh(items))


def _pay_indent(subject: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    width = args[0] if args else kwargs.get("width", 4)
    if isinstance(subject, str):
        pay((subject.count("\n") + 1) * (len(width) if isinstance(width, str) else int(width)))


def _pay_json(subject: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if (isinstance(value, int) and value > LONGEST_INDENT) or weigh(value) > 4 * LONGEST_INDENT:
            raise BudgetError(f"tojson indents or separates by more than {LONGEST_INDENT} characters")
    indented = any(value not in (None, False, True) for value in (*args, *kwargs.values()))
    pay(weigh(subject) * (6 + (depth(subject) * LONGEST_INDENT // STEP if indented else 0)))


def _refuse_lists(subject: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if any(isinstance(value, list | tuple | str) for value in (*args[1:], *filter(None, [kwargs.get("start")]))):
        raise BudgetError("it sums lists")


def _pay_format(subject: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if isinstance(subject, str):
        check_format(subject, (*args, *kwargs.values()))


_SPECIFIC = {
    "format": _pay_format,
    "format_map": _pay_format,
    "replace": _pay_replace,
    "join": _pay_join,
    "indent": _pay_indent,
    "tojson": _pay_json,
    "sum": _refuse_lists,
}
