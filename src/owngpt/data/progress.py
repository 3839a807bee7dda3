"""How far a stage of the work on text has come: the callback that every stage calls, and what a person sees of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from owngpt.config.units import in_bytes

Progress = Callable[[str, int, int, str], None]
"""Called with the stage's name, how much is done, how much there is in all, and the unit of both ("bytes", "characters").

The first call of a stage has 0 done, the last one all; only then does another stage begin. A stage without work is not told.
"""

READING, COMPARING, DIVIDING = "reading text", "finding duplicates", "dividing"
LEARNING, TOKENIZING = "training the tokenizer", "tokenizing"

BAR_SECONDS = 0.1
"""Between redraws of the bar."""
LINE_SECONDS = 10.0
"""Between lines where there is no terminal; a stage that is done sooner says nothing."""


class Stage:
    """One stage of some work: tells `progress`, if there is one, of its beginning, of every step and of its end."""

    def __init__(self, progress: Progress | None, name: str, total: int, unit: str = "bytes") -> None:
        self._progress, self._name, self._total, self._unit = progress, name, total, unit
        self._done = 0

    def __enter__(self) -> Stage:
        self._tell(0)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._tell(self._total)

    def reach(self, done: int) -> None:
        """So much is done in all."""
        self._done = min(done, self._total)
        if self._done < self._total:  # the end is told once, when the stage is left
            self._tell(self._done)

    def add(self, count: int) -> None:
        """So much more is done."""
        self.reach(self._done + count)

    def _tell(self, done: int) -> None:
        if self._progress is not None and self._total > 0:
            self._progress(self._name, done, self._total, self._unit)


@contextmanager
def shown_progress(
    *, quiet: bool = False, stream: IO[str] | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[Progress | None]:
    """A progress callback for one person: a bar on a terminal, a line every ten seconds elsewhere, None when `quiet`.

    The bar vanishes when its stage is done, so that lines printed between two stages stay whole.
    """
    if quiet:
        yield None
        return
    target = stream or sys.stderr
    shown = _Bar(target, clock) if target.isatty() else _Lines(target, clock)
    try:
        yield shown
    finally:
        shown.close()


class _Lines:
    """A line every ten seconds, for files and pipes."""

    def __init__(self, stream: IO[str], clock: Callable[[], float]) -> None:
        self._stream, self._clock = stream, clock
        self._stage = ""
        self._began = self._next = 0.0

    def __call__(self, stage: str, done: int, total: int, unit: str) -> None:
        now = self._clock()
        if stage != self._stage:
            self._stage, self._began, self._next = stage, now, now + LINE_SECONDS
        if now >= self._next and done < total:
            self._next = now + LINE_SECONDS
            print(f"{stage}: {_words(done, total, unit, now - self._began)}", file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing to put in order."""


class _Bar:
    """A bar that is redrawn in place and wiped when its stage is done."""

    def __init__(self, stream: IO[str], clock: Callable[[], float]) -> None:
        self._stream, self._clock = stream, clock
        self._stage = ""
        self._began = self._next = 0.0
        self._live: Any = None
        self._task: Any = None

    def __call__(self, stage: str, done: int, total: int, unit: str) -> None:
        now = self._clock()
        if stage != self._stage:
            self.close()
            self._stage, self._began, self._next = stage, now, 0.0
        if done >= total:
            self.close()
        elif now >= self._next:
            self._next = now + BAR_SECONDS
            if self._live is None:
                self._open(stage)
            words = _words(done, total, unit, now - self._began)
            self._live.update(self._task, completed=done, total=total, words=words, refresh=True)

    def _open(self, stage: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Live

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[words]}", markup=False))
        # No refresh thread: it would take the interpreter from the work ten times a second.
        self._live = Live(*columns, console=Console(file=self._stream), auto_refresh=False, transient=True)
        self._task = self._live.add_task(stage, words="")
        self._live.start()

    def close(self) -> None:
        """Take the bar away and show the cursor again."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def _words(done: int, total: int, unit: str, seconds: float) -> str:
    """`34% of 1.2 GB, 80.1 MB/s, 0:09 left`"""
    amount = in_bytes if unit == "bytes" else lambda count: f"{count:,} {unit}"
    words = f"{done / total:.0%} of {amount(total)}"
    if done > 0 and seconds > 1.0:
        left = round(seconds * (total - done) / done)
        words += f", {amount(round(done / seconds))}/s, {left // 60}:{left % 60:02d} left"
    return words
