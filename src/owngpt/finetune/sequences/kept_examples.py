"""Held-out examples on disk: the report of a resumed run asks the same, whatever became of the files they were in."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from owngpt.config.files import atomic_write_text
from owngpt.errors import DataError
from owngpt.finetune.examples.example import Chat, Completion, Example, Labelled, Origin, PlainText, Preference

RECORDS: dict[str, Any] = {
    record.__name__: record for record in (Chat, Completion, PlainText, Preference, Labelled)
}  # fmt: skip


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """One JSON object a line.

    :raises StorageError: the disk refuses.
    """
    lines = [json.dumps(example_values(each), ensure_ascii=False) for each in examples]
    atomic_write_text(path, "".join(line + "\n" for line in lines))


def read_examples(path: Path) -> list[Example]:
    """The inverse of :func:`write_examples`.

    :raises DataError: the file is not there or damaged.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return [example_of(json.loads(line)) for line in file]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}); put a copy back or start a new run") from error


def example_values(example: Example) -> dict[str, Any]:
    """Plain values, for JSON."""
    return {"record": type(example).__name__, **vars(example), "origin": vars(example.origin)}


def example_of(values: dict[str, Any]) -> Example:
    """The inverse of :func:`example_values`.

    :raises KeyError, TypeError: they are none.
    """
    record = RECORDS[values.pop("record")]
    values["origin"] = Origin(**values["origin"])
    names = {field.name for field in fields(record)}
    made: Example = record(**{name: _frozen(value) for name, value in values.items() if name in names})
    return made


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
