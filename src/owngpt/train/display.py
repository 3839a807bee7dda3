"""What a person sees while a model trains: a live line on a terminal, a plain line every ten seconds elsewhere (stderr)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Protocol

LIVE_SECONDS = 0.4
"""Between redraws of the live line; each takes about a millisecond."""
PLAIN_SECONDS = 10.0
BAR_WIDTH = 10


@dataclass(frozen=True)
class Progress:
    """One moment of a run."""

    step: int
    fraction: float
    """Share of the run that is done, 0 to 1."""
    loss: float
    """Mean negative log-likelihood per token, in nats."""
    bits_per_byte: float | None
    """None where losses are not of plain text."""
    tokens_per_second: float
    matmul_share: float | None
    """Achieved floating-point operations as a share of the machine's measured matrix-product rate."""
    seconds_left: float
    held_out: float | None = None
    """Latest, on held-out text: bits per byte where there are any, else the loss."""

    def words(self) -> str:
        """The moment as one line of text, what matters most first: a narrow terminal cuts its end."""
        parts = [f"{clock_time(self.seconds_left)} left", f"loss {self.loss:.3f}"]
        if self.bits_per_byte is not None:
            parts.append(f"{self.bits_per_byte:.3f} bits/byte")
        if self.held_out is not None:
            parts.append(f"held out {self.held_out:.3f}")
        parts.append(f"{_thousands(self.tokens_per_second)} tokens/s")
        if self.matmul_share is not None:
            parts.append(f"{self.matmul_share:.0%} of matmul")
        parts.append(f"step {self.step}")
        return "  ".join(parts)


class Display(Protocol):
    """Where a trainer shows progress and says what happened."""

    def update(self, make: Callable[[], Progress]) -> None:
        """Called after every step; ``make`` is only called when something will be shown."""

    def say(self, message: str) -> None:
        """Shows a line that stays: how far the run is and what it does."""

    def warn(self, message: str) -> None:
        """Shows a line that stays, of something out of the ordinary; even a quiet run says it."""

    def close(self) -> None:
        """Leaves the terminal in order."""


class Quiet:
    """Shows nothing but what must be said."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream

    def update(self, make: Callable[[], Progress]) -> None:
        """Shows nothing."""

    def say(self, message: str) -> None:
        """Says nothing."""

    def warn(self, message: str) -> None:
        """One line on stderr."""
        print(message, file=self._stream or sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing to do."""


class PlainLines(Quiet):
    """A line every ten seconds, for files and pipes."""

    def __init__(
        self, stream: IO[str] | None = None, *, interval: float = PLAIN_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(stream)
        self._interval = interval
        self._clock = clock
        self._next = clock() + interval

    def update(self, make: Callable[[], Progress]) -> None:
        """Shows a line if the last one is ``interval`` seconds old."""
        if self._clock() >= self._next:
            self._next = self._clock() + self._interval
            progress = make()
            self.say(f"{progress.fraction:4.0%}  {progress.words()}")

    def say(self, message: str) -> None:
        """One line on stderr."""
        self.warn(message)


class LiveLine:
    """One line that is redrawn in place, above it what was said."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        # No refresh thread: it would take the interpreter from the training loop ten times a second.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._started = False
        self._next = 0.0

    def update(self, make: Callable[[], Progress]) -> None:
        """Redraws the line if the last drawing is old enough."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LIVE_SECONDS
        if not self._started:
            self._live.start()
            self._started = True
        self._live.update(_drawn(make()), refresh=True)

    def say(self, message: str) -> None:
        """A line above the live one."""
        self._console.print(message, markup=False)

    def warn(self, message: str) -> None:
        """The same."""
        self.say(message)

    def close(self) -> None:
        """Takes the live line away and shows the cursor again."""
        if self._started:
            self._live.stop()
            self._started = False


def make_display(*, quiet: bool = False, stream: IO[str] | None = None) -> Display:
    """The display that fits: nothing when ``quiet``, a live line on a terminal, plain lines otherwise."""
    target = stream or sys.stderr
    if quiet:
        return Quiet(target)
    return LiveLine(target) if target.isatty() else PlainLines(target)


@contextmanager
def timed(name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Says how long the block took."""
    start = time.monotonic()
    yield
    say(f"{name}: {time.monotonic() - start:.1f} s")


def clock_time(seconds: float) -> str:
    """``75`` as ``1:15``, ``3700`` as ``1:01:40``."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _drawn(progress: Progress) -> Any:
    from rich.text import Text

    filled = round(BAR_WIDTH * min(max(progress.fraction, 0.0), 1.0))
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"{progress.fraction:4.0%} ")
    line.append("━" * filled, style="bold cyan")
    line.append("━" * (BAR_WIDTH - filled), style="dim")
    return line.append("  " + progress.words())


def _thousands(count: float) -> str:
    return f"{count / 1000:.1f}k" if count >= 10_000 else f"{count:,.0f}"
