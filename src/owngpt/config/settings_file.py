"""Settings read from a YAML file, with the same names as the options."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

from owngpt.errors import UsageError

MAX_BYTES = 1_000_000


def read_settings(path: Path, record: type) -> dict[str, Any]:
    """The fields of ``record`` that a YAML file sets; ``learning-rate`` and ``learning_rate`` both count.

    Raises UsageError when the file cannot be read, is not a mapping of names to values, or names an unknown field.
    """
    import yaml

    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} is larger than {MAX_BYTES:,} bytes; a settings file holds a few lines of `name: value`")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no settings file {path}; check the path given to --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the settings file {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"the settings file {path} is not YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"the settings file {path} must hold lines of `name: value`, not a {type(values).__name__}")
    settings = {str(name).replace("-", "_"): value for name, value in values.items()}
    known = [field.name for field in dataclasses.fields(record)]
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
            raise UsageError(f"the settings file {path} names {name!r}, which is no setting{hint}")
    return settings
