"""What every benchmark prints and writes: the machine, a table with medians and spreads, a JSON file."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from owngpt import __version__
from owngpt.config.files import atomic_write_text
from owngpt.kernels.machine import Machine, describe_machine

console = Console(width=None if Console().is_terminal else 120)


def spread(values: Sequence[float], form: str = ",.2f") -> str:
    """Median, and the range when there is more than one value."""
    median = format(statistics.median(values), form)
    return median if len(values) == 1 else f"{median} ({min(values):{form}}–{max(values):{form}})"


def spread_dict(values: Sequence[float]) -> dict[str, Any]:
    """The same for JSON, with every value."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": list(values)}


class Report:
    """Collects the results of the parts that are run."""

    def __init__(self, path: Path | None) -> None:
        """``path``: where the JSON goes after every part, so that an interrupted series keeps what it has."""
        self.path = path
        self.machine = describe_machine()
        self.results: dict[str, Any] = {"owngpt": __version__, "started": time.strftime("%Y-%m-%d %H:%M:%S")}
        self.results |= {"machine": self.machine.to_dict(), "load": _load()}
        console.print(f"[bold]machine:[/] {machine_line(self.machine)}", highlight=False)
        console.print(
            f"[bold]load average:[/] {_load()} (other work on the machine makes every number below worse)", highlight=False
        )

    def add(self, part: str, result: dict[str, Any]) -> None:
        """Keep the result of a part, and write everything so far."""
        self.results[part] = {**result, "load_after": _load()}
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(self.path, json.dumps(self.results, indent=2, ensure_ascii=False))


def machine_line(machine: Machine) -> str:
    """One line that names the machine."""
    features = [name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "asimd") if name in machine.features]
    return (
        f"{machine.processor}, {machine.cores} cores ({machine.threads} threads), {', '.join(features[:3])}, "
        f"{machine.memory_total / 2**30:.0f} GiB, torch {machine.torch}, {machine.compiler or 'no C compiler'}"
    )


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
    """First column left, numbers right, notes below."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table, highlight=False)
    for note in notes:
        console.print(f"  {note}", highlight=False, soft_wrap=True)


def _load() -> float:
    return round(os.getloadavg()[0], 2)
