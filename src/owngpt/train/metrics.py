"""What a run leaves to read: ``metrics.jsonl`` and ``samples.jsonl``, one JSON object a line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from owngpt.config.files import atomic_write_text, make_folder, storage_errors


class JsonLines:
    """A file of JSON objects, one a line, that only grows; each line is whole before the next begins.

    :raises StorageError: on any call, when the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one line. Numbers that JSON does not know (NaN, infinities) become null."""
        with storage_errors(self.path):
            if self._file is None:
                make_folder(self.path.parent)
                self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run
            self._file.write(json.dumps(_finite(record), ensure_ascii=False) + "\n")
            self._file.flush()

    def truncate_after(self, step: int) -> None:
        """Drops the lines after ``step``: they tell of steps that a resumed run takes again. A line cut by a crash goes too."""
        self.close()
        if not self.path.exists():
            return
        kept = (record for record in read_lines(self.path) if record.get("step", 0) <= step)
        atomic_write_text(self.path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))

    def sync(self) -> None:
        """Forces what was written to the disk."""
        if self._file is not None:
            with storage_errors(self.path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file; a later :meth:`append` opens it again."""
        if self._file is not None:
            with suppress(OSError):  # every line was flushed when it was written; a refusal was said then
                self._file.close()
            self._file = None


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole records of a JSON-lines file; a last line that a crash cut off is left out."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Nats per token to bits per byte of text, which compares models of different tokenizers: loss / (ln 2 · bytes per token)."""
    return loss / (math.log(2) * bytes_per_token)


def _finite(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()}
