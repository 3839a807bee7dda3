"""The process of one side of benchmarks/finetune.py: ``python benchmarks/tune_worker.py SPEC`` with the specification as JSON.

Opens the side and answers questions, one JSON object a line. What libraries print goes to stderr.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any

from owngpt.bench.worker import serve


def main() -> None:
    """Serve until stdin ends."""
    serve(_open)


def _open() -> Any:
    from tuning.side import CLASSES, TuneSpec

    spec = TuneSpec(**json.loads(sys.argv[1]))
    module, _, name = CLASSES[spec.kind].partition(":")
    return getattr(import_module(module), name)(spec)


if __name__ == "__main__":
    main()
