"""Where downloads are kept."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """OWNGPT_CACHE, else the user's cache folder; it may not exist yet."""
    chosen = os.environ.get("OWNGPT_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("owngpt")
