"""The files with rows that a person means by a file or a folder."""

from __future__ import annotations

import re
from pathlib import Path

from owngpt.data.sources import ReadLog, SourceFile, list_files, shown_name
from owngpt.errors import DataError
from owngpt.finetune.examples.rows import holds_rows

_LEARNED = frozenset({"train", "training"})
_KEPT_APART = frozenset({"test", "tests", "testing", "validation", "valid", "val", "dev", "eval", "evaluation", "heldout"})
_OF_DATASETS = frozenset({"state.json", "dataset_info.json", "dataset_dict.json"})
"""What the library `datasets` writes by the side of its .arrow files."""


def files_of(path: Path, notes: list[str]) -> list[SourceFile]:
    """The files with rows that `path` is or holds; a plain text only where it is named itself.

    In a folder with a file for learning, those for testing are left out, for whoever parted them meant it; `notes` says so.

    Raises:
        DataError: there is none.
    """
    files = list_files([path], ReadLog())
    if not path.is_dir():
        return files
    files = [file for file in files if holds_rows(file)]
    if any(file.path.suffix.lower() == ".arrow" for file in files):
        files = [file for file in files if file.path.name not in _OF_DATASETS]
    if not files:
        raise DataError(
            f"{shown_name(path)} holds no rows to learn from; put .jsonl, .json, .csv or .parquet into it, "
            "or name plain texts one by one"
        )
    return _to_learn_from(files, path, notes)


def _to_learn_from(files: list[SourceFile], folder: Path, notes: list[str]) -> list[SourceFile]:
    apart = [file for file in files if _words(file, folder) & _KEPT_APART and not _words(file, folder) & _LEARNED]
    if not apart or not any(_words(file, folder) & _LEARNED for file in files):
        return files
    names = ", ".join(shown_name(file.path.relative_to(folder)) for file in apart[:3]) + (" and more" if len(apart) > 3 else "")
    notes.append(f"left out of {shown_name(folder)}: {names}, for testing by its name; name a file itself to learn from it")
    return [file for file in files if file not in apart]


def _words(file: SourceFile, folder: Path) -> set[str]:
    """The words in the path of `file` under `folder`."""
    return set(re.findall(r"[a-z]+", str(file.path.relative_to(folder).with_suffix("")).lower()))
