"""What a person names as data: files, folders, sets that a dataset_info.json describes, and named sets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from owngpt.errors import DataError, UsageError
from owngpt.finetune.examples import named
from owngpt.finetune.examples.columns import Columns
from owngpt.finetune.examples.dataset_info import described_parts, description_of
from owngpt.finetune.examples.folders import files_of
from owngpt.finetune.examples.layouts import Layout
from owngpt.finetune.examples.part import Part


def parts_of(
    sources: Sequence[str], layout: Layout | None, columns: Columns, notes: list[str], *, say: named.Say | None = None
) -> list[Part]:
    """The files of all sources, each once, in order; a layout and columns that a person names go before a description's.

    Args:
        notes: gains what a person should know about the choice of files.

    Raises:
        UsageError: nothing was named, or a description has several sets.
        DataError: a source is not there and is no named set, or holds nothing.
    """
    if not sources:
        raise UsageError("no data was given; name a file, a folder or a named set of examples")
    found: dict[str, Part] = {}
    for source in sources:
        for part in _parts(source, notes, say):
            if layout is not None:
                part = replace(part, layout=layout, columns=replace(part.columns, only=False))
            if columns.named:
                part = replace(part, columns=columns)
            found.setdefault(os.path.realpath(part.file.path), part)
    return list(found.values())


def near(source: str) -> str:
    """A path as it is seen from the working folder, where it lies within: as people name it; anything else as it is."""
    path, here = Path(source), Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else source


def _parts(source: str, notes: list[str], say: named.Say | None) -> list[Part]:
    path = Path(near(source))
    if path.exists() or path.is_symlink():
        description = description_of(path)
        return described_parts(description, None, notes) if description else [Part(file) for file in files_of(path, notes)]
    if source in named.SETS:
        return [Part(file) for fetched in named.fetch(source, say=say) for file in files_of(fetched, notes)]
    before, colon, name = source.rpartition(":")
    if colon and (description := description_of(Path(before))) is not None:
        return described_parts(description, name, notes)
    raise DataError(named.unknown(source))
