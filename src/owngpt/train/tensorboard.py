"""Scalars for TensorBoard, written by a thread: its import takes a quarter of a second that training must not wait for."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue

HAND_OVER_SECONDS = 2.0
_Entry = tuple[int, float, dict[str, float]]
"""Step, time since the epoch in seconds, tag to number."""


class TensorBoardLog:
    """Event files in one folder. Nothing is imported before the first scalar; a failure is kept for :meth:`close` to tell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._queue: SimpleQueue[list[_Entry] | None] = SimpleQueue()
        self._waiting: list[_Entry] = []
        self._handed_over = time.monotonic()
        self._thread: threading.Thread | None = None
        self._resumed_step: int | None = None
        self._problem: str | None = None

    def restart_after(self, step: int) -> None:
        """Tells TensorBoard to forget what was written for later steps; to be called before the first scalar of a resumed run."""
        self._resumed_step = step

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Notes ``values`` (tag to number) at ``step``; they are written within seconds."""
        self._waiting.append((step, time.time(), dict(values)))
        # Each hand-over wakes the thread, which then competes with training for the interpreter: seldom, many at once.
        if time.monotonic() - self._handed_over >= HAND_OVER_SECONDS:
            self._hand_over()

    def close(self, timeout: float = 10.0) -> str | None:
        """Writes what is queued, at most ``timeout`` seconds, and returns what went wrong, if anything did."""
        self._hand_over()
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(timeout)
            self._thread = None
        return self._problem

    def _hand_over(self) -> None:
        if not self._waiting:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, name="tensorboard", daemon=True)
            self._thread.start()
        self._queue.put(self._waiting)
        self._waiting = []
        self._handed_over = time.monotonic()

    def _write(self) -> None:
        try:
            self._write_events()
        except (ImportError, OSError) as error:  # the metrics are in metrics.jsonl too: no reason to end a run
            self._problem = f"TensorBoard files could not be written to {self.folder}: {error}"

    def _write_events(self) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        writer = EventFileWriter(str(self.folder), flush_secs=10)
        if self._resumed_step is not None:
            start = SessionLog(status=SessionLog.START)
            writer.add_event(Event(step=self._resumed_step + 1, wall_time=time.time(), session_log=start))
        while (entries := self._queue.get()) is not None:
            for step, moment, values in entries:
                summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
                writer.add_event(Event(step=step, wall_time=moment, summary=summary))
        writer.close()
