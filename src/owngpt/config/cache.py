"""Where downloads are kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path

from owngpt.config.files import make_folder, storage_errors
from owngpt.errors import StorageError


def cache_folder() -> Path:
    """OWNGPT_CACHE, else the user's cache folder; it may not exist yet."""
    chosen = os.environ.get("OWNGPT_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("owngpt")


@contextmanager
def cache_writes(folder: Path) -> Iterator[None]:
    """Makes `folder`, a part of the cache, for the block that writes into it.

    :raises StorageError: it cannot be made or written to; the message says how to choose another cache.
    """
    try:
        make_folder(folder)
        with storage_errors(folder):
            yield
    except StorageError as error:
        what = str(error).rpartition("; ")[0]  # without the general remedy
        raise StorageError(f"{what}; set OWNGPT_CACHE to a folder that can be written and has room") from error
