"""Everything a trainer tells: to the files of the run, to TensorBoard and to the person who watches."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from owngpt.train.display import Display, Progress
from owngpt.train.metrics import JsonLines, bits_per_byte
from owngpt.train.tensorboard import TensorBoardLog

LINES = 2000
"""About how many training lines a run's metrics.jsonl has at most; each is a mean over the steps since the one before."""
SAMPLE_WIDTH = 160
"""Characters of a sample that are shown while training."""


@dataclass(frozen=True)
class Yardsticks:
    """What turns losses and speeds into numbers that compare across runs."""

    bytes_per_token: float | None
    """Of the training text; None where losses are not of plain text, and so have no bits per byte."""
    validation_bytes_per_token: float | None
    flops_per_token: float | None = None
    """Floating-point operations of the matrix products of a training step, per token."""
    matmul_ceiling: float | None = None
    """Floating-point operations a second of this machine's measured matrix product."""

    def matmul_share(self, tokens_per_second: float) -> float | None:
        """Share of the ceiling that training reaches."""
        if not self.flops_per_token or not self.matmul_ceiling:
            return None
        return self.flops_per_token * tokens_per_second / self.matmul_ceiling

    def bits(self, loss: float) -> float | None:
        """A training loss (nats per token) in bits per byte."""
        return bits_per_byte(loss, self.bytes_per_token) if self.bytes_per_token else None

    def validation_bits(self, loss: float) -> float | None:
        """The same of a loss on held-out text."""
        return bits_per_byte(loss, self.validation_bytes_per_token) if self.validation_bytes_per_token else None


@dataclass(frozen=True)
class Moment:
    """Where the run is when something is recorded."""

    step: int
    tokens: int
    epoch: float
    elapsed: float

    def to_dict(self) -> dict[str, Any]:
        """The common fields of every line."""
        epoch, elapsed = round(self.epoch, 4), round(self.elapsed, 3)
        return {"step": self.step, "tokens": self.tokens, "epoch": epoch, "elapsed_seconds": elapsed}


@dataclass
class _Window:
    """Sums over the steps since the last training line."""

    loss: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """Sums over steps of what the objective saw."""


@dataclass
class _Shown:
    """Smoothed numbers for the live line."""

    loss: float | None = None
    speed: float = 0.0
    validation: float | None = None


class Recorder:
    """Writes ``metrics.jsonl``, ``samples.jsonl`` and ``tensorboard/`` in ``folder`` and feeds a display."""

    def __init__(self, folder: Path, yardsticks: Yardsticks, display: Display, *, steps: int) -> None:
        self.yardsticks = yardsticks
        self.display = display
        self.metrics = JsonLines(folder / "metrics.jsonl")
        self._samples = JsonLines(folder / "samples.jsonl")
        self._tensorboard = TensorBoardLog(folder / "tensorboard")
        self._every = max(1, steps // LINES)
        self._window = _Window()
        self._shown = _Shown()

    def restart_after(self, step: int) -> None:
        """Forgets what was written for steps after ``step``: they will be taken again."""
        self.metrics.truncate_after(step)
        self._samples.truncate_after(step)
        self._tensorboard.restart_after(step)
        self._window = _Window()

    def step_taken(self, loss: float, tokens: int, seconds: float, metrics: Mapping[str, float] | None = None) -> None:
        """Adds one step: mean loss per token in nats, tokens, duration, and what else the objective saw."""
        window, shown = self._window, self._shown
        window.loss += loss * tokens
        window.tokens += tokens
        window.seconds += seconds
        window.steps += 1
        for name, value in (metrics or {}).items():
            window.metrics[name] = window.metrics.get(name, 0.0) + value
        shown.loss = loss if shown.loss is None else shown.loss + 0.15 * (loss - shown.loss)
        speed = tokens / max(seconds, 1e-9)
        shown.speed = shown.speed + 0.1 * (speed - shown.speed) if shown.speed else speed

    def training_line(self, moment: Moment, learning_rate: float, gradient_norm: float, *, last: bool = False) -> None:
        """Writes the mean since the last line, every few steps (always when ``last``)."""
        window = self._window
        if not window.steps or (moment.step % self._every and not last):
            return
        loss = window.loss / max(window.tokens, 1)
        speed = window.tokens / max(window.seconds, 1e-9)
        self._window = _Window()
        values = {
            "loss": loss,
            **_with_bits(self.yardsticks.bits(loss)),
            "learning_rate": learning_rate,
            "gradient_norm": gradient_norm,
            "tokens_per_second": round(speed, 1),
            "matmul_share": self.yardsticks.matmul_share(speed),
            **{name: total / window.steps for name, total in window.metrics.items()},
        }
        self._write("train", moment, values)

    def validation_line(
        self, moment: Moment, loss: float, *, best: bool, seconds: float, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Writes a held-out loss (nats per token), and says it."""
        bits = self.yardsticks.validation_bits(loss)
        self._shown.validation = loss if bits is None else bits
        values = {"loss": loss, **_with_bits(bits), "best": best, "seconds": round(seconds, 3), **(metrics or {})}
        self._write("validation", moment, values)
        rank = ", best so far" if best else ""
        words = f"held-out loss {loss:.4f}" if bits is None else f"held-out text {bits:.4f} bits per byte (loss {loss:.4f})"
        self.display.say(f"step {moment.step}: {words}{rank}")

    def event(self, moment: Moment, event: str, message: str, *, is_usual: bool = False, **values: Any) -> None:
        """Something that happened to the run: said, as a warning unless it is usual, and written."""
        self.metrics.append({"event": event, **moment.to_dict(), **values})
        (self.display.say if is_usual else self.display.warn)(message)

    def samples(self, moment: Moment, samples: Sequence[dict[str, Any]]) -> None:
        """Texts the model wrote; the first one is shown."""
        for sample in samples:
            self._samples.append({**moment.to_dict(), **sample})
        if samples:
            prompt, text = str(samples[0].get("prompt", "")), str(samples[0].get("text", ""))
            words = textwrap.shorten(f"{prompt} … {text}", SAMPLE_WIDTH, placeholder=" …")
            self.display.say(f"step {moment.step}: writes  {words}")

    def show(self, step: int, fraction: float, seconds_left: float) -> None:
        """Feeds the display."""
        self.display.update(lambda: self._progress(step, fraction, seconds_left))

    def sync(self) -> None:
        """Forces the metrics to the disk."""
        self.metrics.sync()
        self._samples.sync()

    def close(self) -> None:
        """Closes files and leaves the terminal in order."""
        self.metrics.close()
        self._samples.close()
        problem = self._tensorboard.close()
        self.display.close()
        if problem:
            self.display.warn(problem)

    def _write(self, split: str, moment: Moment, values: dict[str, Any]) -> None:
        self.metrics.append({"split": split, **moment.to_dict(), **values})
        numbers = {f"{split}/{name}": float(value) for name, value in values.items() if isinstance(value, float)}
        self._tensorboard.scalars(moment.step, numbers)

    def _progress(self, step: int, fraction: float, seconds_left: float) -> Progress:
        loss, speed = self._shown.loss or 0.0, self._shown.speed
        bits = self.yardsticks.bits(loss)
        share = self.yardsticks.matmul_share(speed)
        return Progress(step, fraction, loss, bits, speed, share, seconds_left, self._shown.validation)


def _with_bits(bits: float | None) -> dict[str, float]:
    return {} if bits is None else {"bits_per_byte": bits}
