"""Our own files of prepared data: a folder is ours or left alone, a JSON file is whole or named as damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from owngpt.config.files import atomic_write_text, make_folder
from owngpt.errors import DataError, UsageError

CORPUS_FILE, TEXT_FILE = "corpus.json", "text.utf8"
MANIFEST = "manifest.json"
PREPARED_FILE = "prepared.json"


def own_folder(folder: Path, marker: str, ours: Callable[[str], bool]) -> None:
    """Make `folder`, or accept it when it holds `marker` or nothing but names that `ours` accepts.

    Raises:
        UsageError: the folder holds something else.
        StorageError: it cannot be made.
    """
    check_own(folder, marker, ours)
    make_folder(folder)


def check_own(folder: Path, marker: str, ours: Callable[[str], bool]) -> None:
    """What :func:`own_folder` does, for a folder that need not be there yet and is not made."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; choose an empty or a new folder")
    if not folder.is_dir():
        return
    names = sorted(entry.name for entry in folder.iterdir())
    foreign = [name for name in names if not ours(name)]
    if foreign and marker not in names:
        more = " and more" if len(foreign) > 1 else ""
        raise UsageError(f"{folder} already holds something else ({foreign[0]}{more}); choose an empty or a new folder")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` to `path`, whole or not at all."""
    atomic_write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


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
