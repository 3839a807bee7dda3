"""The loss curve of a run as a picture."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from owngpt.config.files import atomic_write_bytes
from owngpt.train.metrics import read_lines

SMOOTHING_SHARE = 60
"""The drawn training curve is a mean over a sixtieth of the run on either side."""


def draw_curve(metrics: Path, picture: Path, *, title: str = "Training") -> bool:
    """Draws ``metrics.jsonl`` to a PNG: bits per byte over time, training and held-out text, the best point marked.

    Returns False, and draws nothing, when the file has no training line yet.
    """
    records = list(read_lines(metrics)) if metrics.exists() else []
    training = _points(records, "train")
    if not training:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw(axes, training, _points(records, "validation"))
    axes.set_title(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    atomic_write_bytes(picture, buffer.getvalue())
    return True


def _points(records: Sequence[dict[str, Any]], split: str) -> list[tuple[float, float, float]]:
    """(seconds, tokens, bits per byte) of one split's lines."""
    chosen = [record for record in records if record.get("split") == split and record.get("bits_per_byte") is not None]
    return [(record["elapsed_seconds"], record["tokens"], record["bits_per_byte"]) for record in chosen]


def _draw(axes: Any, training: list[tuple[float, float, float]], validation: list[tuple[float, float, float]]) -> None:
    unit, divisor = ("minutes", 60.0) if training[-1][0] >= 120 else ("seconds", 1.0)
    times = [seconds / divisor for seconds, _, _ in training]
    values = [bits for _, _, bits in training]
    axes.plot(times, values, color="#9ec5e8", linewidth=0.8)
    axes.plot(times, smooth(values), color="#1f6fb2", linewidth=1.8, label="training text")
    if validation:
        held_times = [seconds / divisor for seconds, _, _ in validation]
        held = [bits for _, _, bits in validation]
        axes.plot(held_times, held, color="#d9480f", marker="o", markersize=4, linewidth=1.5, label="held-out text")
        best = min(range(len(held)), key=held.__getitem__)
        label = f"best held-out: {held[best]:.3f} bits per byte"
        axes.plot(held_times[best], held[best], marker="*", markersize=15, color="#d9480f", linestyle="none", label=label)
    axes.set_xlabel(f"training time ({unit})")
    axes.set_ylabel("loss (bits per byte)")
    axes.set_ylim(*limits(values, [bits for _, _, bits in validation]))
    axes.set_xlim(0, 1.02 * max(seconds for seconds, _, _ in [training[-1], *validation]) / divisor)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    _add_token_axis(axes, times, [tokens for _, tokens, _ in training])


def _add_token_axis(axes: Any, times: list[float], tokens: list[float]) -> None:
    """A second scale on top: tokens seen, following the measured pace."""
    if len(times) < 2 or tokens[-1] <= 0:
        return
    import numpy as np

    unit, divisor = ("millions", 1e6) if tokens[-1] >= 2e6 else ("thousands", 1e3)
    seen = np.array([0.0, *tokens]) / divisor
    moments = np.array([0.0, *times])
    # Both ways continue beyond the last point at the mean pace; np.interp alone would flatten and lose ticks.
    pace = seen[-1] / max(moments[-1], 1e-9)
    top = axes.secondary_xaxis(
        "top",
        functions=(
            lambda x: np.where(x > moments[-1], seen[-1] + (x - moments[-1]) * pace, np.interp(x, moments, seen)),
            lambda y: np.where(y > seen[-1], moments[-1] + (y - seen[-1]) / pace, np.interp(y, seen, moments)),
        ),
    )
    top.set_xlabel(f"tokens trained on ({unit})")


def smooth(values: list[float]) -> list[float]:
    """Mean of as many neighbours on either side, fewer near the ends: no lag behind a steep fall."""
    sums = [0.0, *itertools.accumulate(values)]
    reach, last = len(values) // SMOOTHING_SHARE, len(values) - 1
    means = []
    for index in range(len(values)):
        near = min(reach, index, last - index)
        means.append((sums[index + near + 1] - sums[index - near]) / (2 * near + 1))
    return means


def limits(training: list[float], validation: list[float]) -> tuple[float, float]:
    """Vertical range: the first steep fall is cut off so that the rest can be read."""
    settled = training[len(training) // 20 :]
    low, high = min([*settled, *validation]), max([*settled, *validation[1:]])
    margin = 0.06 * max(high - low, 0.05)
    return low - margin, high + margin
