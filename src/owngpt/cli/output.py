"""Where words go: results on stdout, everything else on stderr, and one JSON object when asked."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PLAIN_SECONDS = 10.0
"""Between two lines of progress where stderr is a file or a pipe."""


def print_json(result: Any) -> None:
    """Print ``result`` as one JSON object and nothing else; numbers that JSON does not know become null."""
    assert isinstance(result, dict), "a verb returns a dictionary under --json"
    print(json.dumps(plain(result), ensure_ascii=False, indent=2, allow_nan=False))


def plain(value: Any) -> Any:
    """``value`` as JSON's own types: records and paths unfolded, NaN and infinities as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return value


def say(message: str) -> None:
    """One line for the person who waits, on stderr."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def live_line(*, quiet: bool = False) -> Iterator[Callable[[str], None] | None]:
    """A function that rewrites one line of the terminal, which is wiped at the end; None where stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return

    def show(text: str) -> None:
        print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)  # \x1b[K wipes the rest of the line

    try:
        yield show
    finally:
        show("")


@contextmanager
def counter(what: str) -> Iterator[Callable[[int], None]]:
    """A callback for a running count: a line that is rewritten on a terminal, a plain one every ten seconds elsewhere."""
    next_line = time.monotonic() + PLAIN_SECONDS

    def say_now_and_then(text: str) -> None:
        nonlocal next_line
        if time.monotonic() >= next_line:
            next_line = time.monotonic() + PLAIN_SECONDS
            say(text)

    with live_line() as show:
        tell = show or say_now_and_then
        yield lambda count: tell(f"{count:,} {what}")


def print_pairs(pairs: dict[str, Any], *, indent: str = "") -> None:
    """Aligned ``name  value`` lines on stdout."""
    width = max((len(name) for name in pairs), default=0)
    for name, value in pairs.items():
        print(f"{indent}{name:<{width}}  {value}")


def human_bytes(count: float) -> str:
    """``1536`` as ``1.5 KB`` (powers of 1024)."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"


def tolerate_narrow_encodings() -> None:
    """Let a terminal that cannot show a character show a stand-in rather than stop the run."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def abandon_stdout() -> None:
    """After the reader of a pipe has gone: nothing more can be written, not even by the interpreter's own flush at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_table(table: Any) -> None:
    """Something that rich knows how to draw, on stdout, as wide as the terminal, or 120 columns in a pipe."""
    from rich.console import Console

    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120).print(table)
