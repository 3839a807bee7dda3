"""Writing our own files safely: whole or not at all, and a clear sentence when the disk says no."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from owngpt.errors import DataError, StorageError, UsageError

Progress = Callable[[str, int, int], None]
"""Called with the stage's name, the bytes done and the bytes in all (0 when unknown)."""

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "permission was denied; choose a folder that you may write to",
    errno.EPERM: "permission was denied; choose a folder that you may write to",
    errno.ENOTDIR: "a part of that path is a file; choose another folder",
    errno.EEXIST: "a file of that name is in the way; choose another folder",
}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a failure to write under `path` into a :class:`StorageError` that names it and the way out."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise StorageError(f"cannot write to {path}: {reason}") from error


def own_folder(folder: Path, marker: str, ours: Callable[[str], bool]) -> None:
    """Make `folder`, or accept it when it is empty or ours (holds `marker`, or nothing but names that `ours` accepts).

    Raises:
        UsageError: the folder holds something else.
        StorageError: it cannot be made.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        names = [entry.name for entry in os.scandir(folder)]
    foreign = sorted(name for name in names if not ours(name))
    if foreign and marker not in names:
        raise UsageError(
            f"{folder} already holds something else ({foreign[0]}{' and more' if len(foreign) > 1 else ''}); "
            "choose an empty or new folder"
        )


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` to `path` through a temporary file, a flush to the disk and a rename: never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with storage_errors(path.parent):
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that :func:`write_json` wrote.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing; prepare the data again") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); delete its folder and prepare the data again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} is damaged (not an object); delete its folder and prepare the data again")
    return value
