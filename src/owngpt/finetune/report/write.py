"""The report of a run: a page, its pictures, and the numbers for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from owngpt.config.files import atomic_write_text, make_folder
from owngpt.finetune.report.comparison import Comparison, compare
from owngpt.finetune.report.concerns import Concern, concerns
from owngpt.finetune.report.facts import RunFacts
from owngpt.finetune.report.measure import Measurement
from owngpt.finetune.report.page import page, sentence
from owngpt.finetune.report.pictures import draw_confusion, draw_losses, draw_scores
from owngpt.train.metrics import read_lines

PAGE, NUMBERS, PICTURES = "report.md", "report.json", "report"


@dataclass(frozen=True)
class Report:
    """What was written."""

    folder: Path
    comparison: Comparison
    concerns: tuple[Concern, ...]
    values: dict[str, Any]
    """The content of report.json."""

    @property
    def page(self) -> Path:
        """The Markdown file."""
        return self.folder / PAGE

    def sentence(self) -> str:
        """What changed, in one sentence."""
        return sentence(self.comparison)


def write_report(
    folder: Path,
    *,
    before: Measurement,
    after: Measurement,
    curve: Path,
    data: Mapping[str, Any],
    plan: Mapping[str, Any],
    method: str,
) -> Report:
    """Write ``report.md``, ``report.json`` and the pictures in ``report/``.

    :param folder: of the model or adapter.
    :param before: measured before learning, ``after`` after it, with the same held-out examples and seed.
    :param curve: the run's metrics.jsonl.
    :param data: ``sentence``, what the examples are; ``train`` and ``held_out``, statistics of their stores; anything else is
        shown as it is.
    :param plan: ``learning_rate``, ``lora``, ``replay`` and whatever else was decided.
    :param method: in words.
    :raises StorageError: the disk refuses.
    """
    comparison = compare(before, after)
    records = list(read_lines(curve)) if curve.exists() else []
    found = tuple(concerns(before, after, comparison, RunFacts.of(data, plan), records))
    pictures = _draw(folder, comparison, curve)
    values = {
        "method": method, "comparison": comparison.to_dict(), "warnings": [concern.to_dict() for concern in found],
        "before": before.to_dict(), "after": after.to_dict(), "plan": dict(plan), "data": dict(data), "pictures": pictures,
    }  # fmt: skip
    values = _json_values(values)
    text = page(
        folder.resolve().name, comparison, before, after, found, data=data, plan=plan, method=method, pictures=pictures
    )  # fmt: skip
    atomic_write_text(folder / NUMBERS, json.dumps(values, ensure_ascii=False, indent=2) + "\n")
    atomic_write_text(folder / PAGE, text)
    return Report(folder, comparison, found, values)


def _draw(folder: Path, comparison: Comparison, curve: Path) -> dict[str, str]:
    """File names, from the folder, of what could be drawn."""
    make_folder(folder / PICTURES)
    confusion = comparison.confusion
    drawn = {
        "loss": draw_losses(curve, folder / PICTURES / "loss.png"),
        "scores": draw_scores(comparison, folder / PICTURES / "scores.png"),
        "confusion": confusion is not None and draw_confusion(confusion[1], folder / PICTURES / "confusion.png"),
    }
    return {name: f"{PICTURES}/{name}.png" for name, is_there in drawn.items() if is_there}


def _json_values(value: Any) -> Any:
    """What JSON knows: numbers that are none become null."""
    if isinstance(value, Mapping):
        return {str(name): _json_values(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_values(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
