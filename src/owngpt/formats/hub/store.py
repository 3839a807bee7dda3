"""The cache of pulled models: a folder each, which is whole or not there, and one writer at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from owngpt.config.cache import cache_folder
from owngpt.config.files import TEMPORARY_SUFFIX, atomic_write_text, make_folder, storage_errors, sync_file, sync_folder
from owngpt.errors import UsageError
from owngpt.formats.hub.files import Say, require_space
from owngpt.formats.hub.spec import Spec

RECORD = "pull.json"
"""Written last: what was pulled from where, and the size of each file."""


def models_folder() -> Path:
    """Where pulled models are kept, apart from those of Hugging Face, which have a cache of their own."""
    return cache_folder() / "models"


def folder_of(spec: Spec) -> Path:
    """The folder that a model has, or would have, in the cache."""
    if spec.kind == "url":
        return models_folder() / f"url--{spec.sha256[:16]}"
    chosen = f"--{spec.choice.lower()}" if spec.choice else ""
    version = f"@{spec.revision.replace('/', '--')}" if spec.revision else ""
    return models_folder() / f"{spec.kind}--{spec.name.replace('/', '--')}{chosen}{version}"


def record_of(folder: Path) -> dict[str, Any] | None:
    """What was pulled into `folder`, if all of it is still there."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in record["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if whole and record["files"] else None


def versions_of(spec: Spec) -> list[Path]:
    """The folders of a model at any version, the newest pull first."""
    if not models_folder().is_dir():
        return []
    start = folder_of(spec).name
    found = [path for path in models_folder().iterdir() if path.name == start or path.name.startswith(f"{start}@")]
    whole = [path for path in found if record_of(path) is not None]
    return sorted(whole, key=lambda path: (path / RECORD).stat().st_mtime, reverse=True)


@contextmanager
def one_writer(folder: Path, say: Say) -> Iterator[None]:
    """Waits until no other process writes what `folder` is to become."""
    make_folder(folder.parent)
    with storage_errors(folder):
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say("Another process is pulling the same; waiting for it …")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def staging_of(folder: Path) -> Path:
    """Where the files of `folder` are gathered; what an interrupted pull left there is gone on with."""
    return make_folder(folder.with_name(f".{folder.name}{TEMPORARY_SUFFIX}"))


def publish(staging: Path, folder: Path, description: Mapping[str, Any]) -> None:
    """Turn gathered files into the folder of a model.

    :raises StorageError: the disk refuses; what was there before is untouched.
    """
    with storage_errors(folder):
        for path in staging.iterdir():
            if path.name.startswith("."):  # tools and pieces of the pull
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        files = {path.name: path.stat().st_size for path in sorted(staging.iterdir()) if path.name != RECORD}
        for name in files:
            sync_file(staging / name)
        atomic_write_text(staging / RECORD, json.dumps({**description, "files": files}, ensure_ascii=False, indent=1) + "\n")
        if folder.exists():  # an older or a damaged one
            gone = folder.with_name(f".{folder.name}.old{TEMPORARY_SUFFIX}")
            shutil.rmtree(gone, ignore_errors=True)
            os.replace(folder, gone)
            os.replace(staging, folder)
            shutil.rmtree(gone, ignore_errors=True)
        else:
            os.replace(staging, folder)
        sync_folder(folder.parent)


def copy_out(source: Path, output: Path) -> Path:
    """Copy the files of a pulled model to a folder of the person's own; config.json comes last, with it the folder is a model.

    :raises UsageError: the folder holds something else.
    :raises StorageError: the disk refuses.
    """
    files = sorted(
        (path for path in source.iterdir() if path.is_file() and path.name != RECORD),
        key=lambda path: (path.name == "config.json", path.name),
    )
    foreign = {path.name for path in output.iterdir()} - {path.name for path in files} if output.is_dir() else set()
    foreign = {name for name in foreign if not name.endswith(TEMPORARY_SUFFIX)}
    if foreign:
        raise UsageError(f"{output} already holds something else ({min(foreign)}); choose an empty or a new folder")
    require_space(output, sum(path.stat().st_size for path in files))
    make_folder(output)
    with storage_errors(output):
        for path in files:
            partial = output / f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}"
            try:
                shutil.copyfile(path, partial)
                sync_file(partial)
                os.replace(partial, output / path.name)
            finally:
                partial.unlink(missing_ok=True)
        sync_folder(output)
    return output
