"""Checkpoints that are whole or not there, and that are never trusted without being checked.

A checkpoint is a folder ``step-00001200`` with three files: ``state.safetensors`` (every tensor), ``state.json`` (every
plain value) and ``manifest.json`` (size and SHA-256 of the other two), written in this order. They are written in a
staging folder that takes its real name only after all of it was forced to the disk, so that a crash at any instant
leaves either the earlier checkpoints or those and the new one. Reading hashes the files first: a damaged checkpoint is
named, never loaded. Nothing in it is a pickle.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from owngpt.config.files import TEMPORARY_SUFFIX, make_folder, sha256_of_file, storage_errors, sync_file, sync_folder
from owngpt.errors import CheckpointError, StorageError

FORMAT = 1
TENSORS = "state.safetensors"
VALUES = "state.json"
MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")

State = Mapping[str, torch.Tensor | int | float | bool | str]


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, read and verified."""

    path: Path
    step: int
    state: dict[str, Any]
    """What was saved: flat names to tensors (on the CPU) and plain values."""
    meta: dict[str, Any]
    """The JSON record saved beside the state."""


def save(folder: Path, step: int, state: State, meta: Mapping[str, Any]) -> Path:
    """Writes a checkpoint to ``folder/step-<step>`` and returns its path.

    :param state: flat names to tensors and plain values; tensors are written without a copy in memory.
    :param meta: a JSON-able record (data position, planner state, counters).
    :raises StorageError: the disk is full, read-only or not ours; earlier checkpoints are untouched.
    """
    path = folder / f"step-{step:08d}"
    staging = folder / f".{path.name}{TEMPORARY_SUFFIX}"
    make_folder(folder)
    try:
        with storage_errors(path):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            _write(staging, step, state, meta)
            _take_name(staging, path)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, StorageError):
            raise StorageError(f"{error}. {_what_is_left(folder)}") from error
        raise
    return path


def load(path: Path, *, verified: bool = False) -> Checkpoint:
    """Reads one checkpoint after checking every file against its manifest.

    :param verified: :func:`find_newest` has just checked it; hashing is not repeated.
    :raises CheckpointError: a file is missing, cut, changed or unreadable; the message names it.
    """
    problem = None if verified else damage(path)
    if problem:
        raise CheckpointError(f"checkpoint {path} is damaged: {problem}; resume from another one in {path.parent}")
    values = json.loads((path / VALUES).read_text("utf-8"))
    state = {**load_file(path / TENSORS), **values["state"]}
    return Checkpoint(path, values["step"], state, values["meta"])


def find_newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint in ``folder`` (None when there is none), and one line for each newer damaged one."""
    damaged: list[str] = []
    for path in reversed(checkpoints(folder)):
        problem = damage(path)
        if problem is None:
            return path, damaged
        damaged.append(f"checkpoint {path} is damaged: {problem}; skipped")
    return None, damaged


def checkpoints(folder: Path) -> list[Path]:
    """Everything in ``folder`` that has a checkpoint's name, whole or not, oldest first."""
    if not folder.is_dir():
        return []
    found = [entry for entry in folder.iterdir() if entry.is_dir() and _NAME.fullmatch(entry.name)]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The number of steps a checkpoint's name states."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise CheckpointError(f"{path} is not a checkpoint; its name should look like step-00001200")
    return int(match[1])


def damage(path: Path) -> str | None:
    """What is wrong with the checkpoint at ``path``, or None when every byte is as it was written."""
    if not path.is_dir():
        return "there is no such folder"
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        files = manifest["files"]
        expected = {name: (files[name]["size"], files[name]["sha256"]) for name in (TENSORS, VALUES)}
        if manifest["format"] != FORMAT:
            return f"{MANIFEST} has format {manifest['format']!r}, this version reads {FORMAT}"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except OSError as error:
        return f"{MANIFEST} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is not readable as a manifest"
    problems = (_file_damage(path / name, *entry) for name, entry in expected.items())
    return next((problem for problem in problems if problem), None)


def prune(folder: Path, *, newest: int, keep: int) -> None:
    """Keeps ``keep`` checkpoints up to step ``newest``, which was just written, and deletes the others.

    Those beyond ``newest`` are damaged, or of a course that was left by resuming from an earlier one.
    """
    found = checkpoints(folder)
    current = [path for path in found if step_of(path) <= newest][-keep:]
    for path in found:
        if path in current:
            continue
        # Renamed first: a deletion that is cut short must not leave something that looks like a checkpoint.
        doomed = path.with_name(f".{path.name}.old{TEMPORARY_SUFFIX}")
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def clear_leftovers(folder: Path) -> list[Path]:
    """Deletes what a killed run left half written and returns it. Only the holder of the run's lock may call this."""
    leftovers = sorted(folder.glob(f".*{TEMPORARY_SUFFIX}")) if folder.is_dir() else []
    for path in leftovers:
        shutil.rmtree(path, ignore_errors=True)
    return leftovers


def _write(staging: Path, step: int, state: State, meta: Mapping[str, Any]) -> None:
    """Fills the staging folder, the manifest last, and forces all of it to the disk."""
    tensors = {name: value.detach().contiguous() for name, value in state.items() if isinstance(value, torch.Tensor)}
    plain = {name: value for name, value in state.items() if name not in tensors}
    save_file(tensors, staging / TENSORS)
    _write_json(staging / VALUES, {"step": step, "state": plain, "meta": dict(meta)})
    entries = {}
    for name in (TENSORS, VALUES):
        file = staging / name
        entries[name] = {"size": file.stat().st_size, "sha256": sha256_of_file(file)}
        sync_file(file)
    _write_json(staging / MANIFEST, {"format": FORMAT, "files": entries})
    sync_file(staging / MANIFEST)
    sync_folder(staging)


def _write_json(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=1), "utf-8")


def _take_name(staging: Path, path: Path) -> None:
    """Renames the finished staging folder. A checkpoint of the same step (damaged, or of a run rolled back) gives way."""
    if path.exists():
        old = path.with_name(f".{path.name}.old{TEMPORARY_SUFFIX}")
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        staging.rename(path)
        sync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    else:
        staging.rename(path)
        sync_folder(path.parent)


def _file_damage(path: Path, size: int, sha256: str) -> str | None:
    try:
        found = path.stat().st_size
        if found != size:
            return f"{path.name} has {found} bytes instead of {size}"
        if sha256_of_file(path) != sha256:
            return f"{path.name} does not match its SHA-256"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    return None


def _what_is_left(folder: Path) -> str:
    left = checkpoints(folder)
    return f"The checkpoint before it, {left[-1]}, is intact" if left else "There is no earlier checkpoint"
