"""How long a person waits before anything happens: `owngpt --help` and `import owngpt`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from process import run
from report import print_table, spread, spread_dict

LIMIT = 60.0
IMPORT = "import time; began = time.perf_counter(); import owngpt; print(time.perf_counter() - began)"


def startup(repeats: int) -> dict[str, Any]:
    """The commands in turn, after one of each that fills the file cache; an empty Python beside them."""
    script = Path(sys.executable).with_name("owngpt")
    commands = {
        "owngpt --help": [str(script), "--help"] if script.exists() else [sys.executable, "-m", "owngpt", "--help"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in (*commands, "import owngpt")}
    for turn in range(repeats + 1):
        times = {name: run(command, limit=LIMIT).seconds for name, command in commands.items()}
        times["import owngpt"] = float(run([sys.executable, "-c", IMPORT], limit=LIMIT).output)
        if turn:
            for name, value in times.items():
                seconds[name].append(value)
    notes = ("`import owngpt` is timed inside of its process, the others from outside; median (min–max)",)
    print_table("Start", ("what", "seconds"), [(name, spread(values, ".3f")) for name, values in seconds.items()], notes)
    return {name: spread_dict(values) for name, values in seconds.items()}
