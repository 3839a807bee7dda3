"""The process of one side: opens it, writes one token, then answers questions, one JSON object a line.

``python -m owngpt.bench.worker SPEC`` with the specification as JSON. What libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

FIRST_PROMPT = 16
"""Tokens of the prompt whose first token ends the start."""


def main() -> None:
    """Serve until stdin ends."""
    serve(_open)


def serve(opener: Callable[[], Any]) -> None:
    """Open a side, say so, and answer questions by its methods of their names until stdin ends; then close it.

    :param opener: gives the side, which has ``process_id()`` and ``close()``, and answers that JSON knows.
    """
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        side = opener()
    except Exception as error:
        _reply(channel, {"error": _told(error)})
        return
    _reply(channel, {"opened": True})
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            _reply(channel, {"result": _answer(side, asked.pop("verb"), asked)})
        except Exception as error:  # one thing that a side cannot do must not end the comparison
            _reply(channel, {"error": _told(error)})
    side.close()


def _open() -> Any:
    from owngpt.bench.side import CLASSES, SideSpec
    from owngpt.kernels.startup import hasten

    values = json.loads(sys.argv[1])
    first = values.pop("first_prompt")
    spec = SideSpec(**values)
    if spec.kind == "owngpt":
        hasten("inference")  # as `owngpt generate` does
    module, _, name = CLASSES[spec.kind].partition(":")
    side = getattr(import_module(module), name)(spec)
    side.prefill(first)
    return side


def _answer(side: Any, verb: str, arguments: dict[str, Any]) -> Any:
    if verb == "idle":
        return _idle(side.process_id(), arguments["seconds"])
    if verb == "memory":
        return _memory(side.process_id())
    return getattr(side, verb)(**arguments)


def _idle(process_id: int, seconds: float) -> dict[str, float]:
    """Share of one core that all threads together use while nothing is asked."""
    time.sleep(min(1.0, seconds))
    used, began = _cpu_seconds(process_id), time.perf_counter()
    time.sleep(seconds)
    return {"cpu": (_cpu_seconds(process_id) - used) / (time.perf_counter() - began)}


def _cpu_seconds(process_id: int) -> float:
    if process_id == os.getpid():
        return time.process_time()
    fields = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(process_id: int) -> dict[str, float]:
    """Resident bytes of the process that computes, now and at most."""
    status = Path(f"/proc/{process_id}/status")
    if not status.exists():  # not Linux: only the most is known
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {"resident": peak, "peak": peak}
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":" in line)
    return {"resident": int(lines["VmRSS"].split()[0]) * 1024, "peak": int(lines["VmHWM"].split()[0]) * 1024}


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _reply(channel: TextIO, value: dict[str, Any]) -> None:
    channel.write(json.dumps(value) + "\n")
    channel.flush()


if __name__ == "__main__":
    main()
