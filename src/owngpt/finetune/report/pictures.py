"""The pictures of a report: loss curves, scores before and after, who was taken for whom."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from owngpt.config.files import atomic_write_bytes
from owngpt.finetune.report.comparison import Comparison, Line
from owngpt.finetune.report.labels import Confusion
from owngpt.train.curve import limits, smooth
from owngpt.train.metrics import read_lines

BEFORE, AFTER, LIGHT, GRID = "#9aa5b1", "#1f6fb2", "#9ec5e8", 0.25
HELD_OUT = "#d9480f"
CHINESE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
    "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "Arial Unicode MS",
)  # fmt: skip
MOST_CLASSES = 30
"""Of a confusion matrix that can still be read."""


def draw_losses(metrics: Path, picture: Path) -> bool:
    """Draw ``metrics.jsonl``: training and held-out loss over the steps, the best look marked.

    Returns False, and draws nothing, when there is no training line.
    """
    records = list(read_lines(metrics)) if metrics.exists() else []
    training = _points(records, "train")
    held_out = _points(records, "validation")
    if not training:
        return False
    figure, axes = _figure(8, 4.6)
    steps, values = [point[0] for point in training], [point[1] for point in training]
    axes.plot(steps, values, color=LIGHT, linewidth=0.8)
    axes.plot(steps, smooth(values), color=AFTER, linewidth=1.8, label="training examples")
    held = [loss for _, loss, _ in held_out]
    if held:
        axes.plot([step for step, _, _ in held_out], held, color=HELD_OUT, marker="o", markersize=4, label="held-out examples")
        best = min(range(len(held)), key=held.__getitem__)
        label = f"best on held-out examples: {held[best]:.3f}"
        axes.plot(held_out[best][0], held[best], marker="*", markersize=15, color=HELD_OUT, linestyle="none", label=label)
    axes.set_ylim(*limits(values, held))
    axes.set_xlim(left=0)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_title("Loss while learning")
    axes.grid(alpha=GRID)
    axes.legend(frameon=False)
    _add_epochs(axes, training[-1])
    _save(figure, picture)
    return True


def draw_scores(comparison: Comparison, picture: Path) -> bool:
    """Draw every share between 0 and 1 before and after as bars. Returns False when there is none."""
    lines = [line for line in (*comparison.gained, *comparison.writing) if line.style == "percent"]
    if not lines:
        return False
    figure, axes = _figure(8, 1.4 + 0.62 * len(lines))
    for place, line in enumerate(lines):
        for offset, value, color in ((-0.19, line.before, BEFORE), (0.19, line.after, AFTER)):
            if not math.isfinite(value):
                continue
            axes.barh(place + offset, 100 * value, height=0.36, color=color)
            axes.text(100 * value + 1, place + offset, f"{100 * value:.0f} %", va="center", fontsize=9)
    axes.set_yticks(range(len(lines)), [_with_aim(line) for line in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlim(0, 110)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("percent")
    axes.set_title("Held-out examples")
    axes.grid(alpha=GRID, axis="x")
    axes.set_axisbelow(True)
    handles = [_patch(BEFORE, "before"), _patch(AFTER, "after")]
    compared = any(math.isfinite(line.before) for line in lines)
    figure.legend(handles=handles if compared else handles[1:], frameon=False, loc="outside lower right", ncols=2)
    _save(figure, picture)
    return True


def draw_confusion(confusion: Confusion, picture: Path) -> bool:
    """Draw a confusion matrix; rows are the classes as they are. Returns False when it has too many classes to be read."""
    count = len(confusion.labels)
    if not 2 <= count <= MOST_CLASSES:
        return False
    size = 3.2 + 0.42 * count
    figure, axes = _figure(size + 0.8, size)
    shares = confusion.counts / confusion.counts.sum(1, keepdims=True).clip(1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names, font = _label_names(confusion.labels)
    turned = max(map(len, names)) > 3
    axes.set_xticks(range(count), names, rotation=45 if turned else 0, ha="right" if turned else "center", fontfamily=font)
    axes.set_yticks(range(count), names, fontfamily=font)
    for row in range(count):
        for column in range(count):
            if confusion.counts[row, column]:
                color = "white" if shares[row, column] > 0.55 else "black"
                number = f"{confusion.counts[row, column]}"
                axes.text(column, row, number, ha="center", va="center", color=color, fontsize=8 if count > 12 else 10)
    axes.set_xlabel("was taken for")
    axes.set_ylabel("is")
    axes.set_title("Held-out texts after learning")
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the class")
    _save(figure, picture)
    return True


def _points(records: Sequence[dict[str, Any]], split: str) -> list[tuple[int, float, float]]:
    """(step, loss, epoch) of one split's lines."""
    chosen = [record for record in records if record.get("split") == split and record.get("loss") is not None]
    return [(record["step"], record["loss"], record.get("epoch", 0.0)) for record in chosen]


def _add_epochs(axes: Any, last: tuple[int, float, float]) -> None:
    """A second scale on top: passes over the examples."""
    step, _, epoch = last
    if step < 2 or epoch <= 0:
        return
    top = axes.secondary_xaxis("top", functions=(lambda x: x * epoch / step, lambda x: x * step / epoch))
    top.set_xlabel("passes over the examples")


def _with_aim(line: Line) -> str:
    return f"{line.name}\n({line.better} is better)" if line.better else line.name


def _label_names(labels: Sequence[str]) -> tuple[list[str], str]:
    """What stands at the axes, and in which font: numbers where no font here can write the names."""
    names = [label if len(label) <= 18 else label[:17] + "…" for label in labels]
    if all(ord(character) < 0x2E80 for name in names for character in name):
        return names, "sans-serif"
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    font = next((name for name in CHINESE_FONTS if name in installed), None)
    return (names, font) if font else ([str(index) for index in range(1, len(names) + 1)], "sans-serif")


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _patch(color: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=color, label=label)


def _save(figure: Any, picture: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    atomic_write_bytes(picture, buffer.getvalue())
