"""Small facts that were measured on this machine, kept in the user's cache folder from one process to the next."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from owngpt.config.files import atomic_write_text
from owngpt.errors import StorageError
from owngpt.kernels.build import cache_folder

LARGEST = 1 << 16
"""Bytes of a record; nothing that we write comes near."""


def folder(topic: str) -> Path:
    """Where the records of a topic lie."""
    return cache_folder().parent / topic


def recall(topic: str, key: str) -> dict[str, Any]:
    """A record, or {} where there is none that can be read."""
    file = folder(topic) / f"{key}.json"
    try:
        if file.stat().st_size > LARGEST:
            return {}
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def keep(topic: str, key: str, values: dict[str, Any]) -> None:
    """Write a record; where the cache cannot be written, the fact is measured again another time."""
    with suppress(OSError, StorageError):
        folder(topic).mkdir(parents=True, exist_ok=True)
        atomic_write_text(folder(topic) / f"{key}.json", json.dumps(values, indent=1))
