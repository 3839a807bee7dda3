"""Settings read from a YAML file, with the same names as the options."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any, get_args, get_type_hints

from owngpt.config.checks import fitting
from owngpt.errors import UsageError

MAX_BYTES = 1_000_000


def read_settings(path: Path, record: type) -> dict[str, Any]:
    """The fields of ``record`` that a YAML file sets; ``learning-rate`` and ``learning_rate`` both count.

    Raises UsageError when the file cannot be read, is not a mapping of names to values, names an unknown field, or
    gives a field a value of another type.
    """
    return fitted(path, load_settings(path), record)


def fitted(path: Path, values: dict[Any, Any], record: type) -> dict[str, Any]:
    """``values``, which were read from ``path``, under the names and types of the fields of ``record``; errors as above."""
    hints = get_type_hints(record)
    known = [field.name for field in dataclasses.fields(record)]
    settings: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
            raise UsageError(f"the settings file {path} names {key!r}, which is no setting{hint}")
        settings[name] = _fitted(path, name, value, hints[name])
    return settings


def load_settings(path: Path) -> dict[Any, Any]:
    """The names and values in a YAML file; nothing for an empty one."""
    values = _load(path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"the settings file {path} must hold lines of `name: value`, not a {type(values).__name__}")
    return values


def _load(path: Path) -> Any:
    import yaml

    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} is larger than {MAX_BYTES:,} bytes; a settings file holds a few lines of `name: value`")
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no settings file {path}; check the path given to --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the settings file {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"the settings file {path} is not YAML: {' '.join(str(error).split())}") from error


def _fitted(path: Path, name: str, value: Any, hint: Any) -> Any:
    """``value`` as the field's type; YAML reads ``1e-3`` as text, which is fine for a number."""
    try:
        return fitting(_as_number(value) if float in (hint, *get_args(hint)) else value, hint)
    except TypeError as error:
        raise UsageError(f"the settings file {path} gives {name} the value {value!r}, but it must be {error}") from error


def _as_number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
