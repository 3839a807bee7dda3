"""JSON files that others wrote: bounded, and in UTF-8 with or without the mark that some editors put before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from owngpt.errors import ModelFolderError


def read_bounded(path: Path, maximum_bytes: int) -> bytes:
    """The content of a file in UTF-8, without a byte order mark.

    :raises ModelFolderError: it cannot be read, or is larger than any honest one.
    """
    try:
        if (size := path.stat().st_size) > maximum_bytes:
            raise ModelFolderError(f"{path} has {size:,} bytes; a {path.name} has at most {maximum_bytes:,}")
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise ModelFolderError(f"{path} cannot be read ({error.strerror}); copy the folder again") from error


def read_json_object(path: Path, maximum_bytes: int) -> dict[str, Any]:
    """The object that a file of a model folder holds.

    :raises ModelFolderError: it cannot be read, is too large, not JSON in UTF-8, or not an object.
    """
    try:
        values = json.loads(read_bounded(path, maximum_bytes).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelFolderError(f"{path} is not JSON ({error}); copy the folder again") from error
    if not isinstance(values, dict):
        raise ModelFolderError(f"{path} holds a {type(values).__name__}, not a JSON object; copy the folder again")
    return values
