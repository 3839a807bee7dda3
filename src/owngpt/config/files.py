"""Files that are either whole or not there: atomic writes, fsync, SHA-256, and what a refusing disk means.

A reader never sees half a file: content goes to a neighbour with a temporary name, is forced to the disk, and takes the
real name in one rename, which POSIX makes atomic. The folder is forced to the disk too, or a power loss could forget
the rename.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from owngpt.errors import StorageError

TEMPORARY_SUFFIX = ".partial"
"""Ending of a file or folder that is still being written; whoever finds one after a crash may delete it."""

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose a folder on another disk",
    errno.EDQUOT: "your disk quota is used up; free some space or choose a folder on another disk",
    errno.EFBIG: "the file would pass the size limit set for this process (ulimit -f); raise the limit",
    errno.EROFS: "the disk is read-only; choose a folder that can be written",
    errno.EACCES: "permission denied; choose a folder of your own or change its permissions",
    errno.EPERM: "permission denied; choose a folder of your own or change its permissions",
    errno.ENOENT: "its folder does not exist, or vanished meanwhile; create it or choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another folder",
    errno.EEXIST: "a file of that name is in the way; choose another folder",
    errno.EIO: "the disk reports an input/output error; check the disk",
}


def storage_error(error: BaseException, path: Path) -> StorageError | None:
    """The sentence for a failed write to ``path``, or None when ``error`` is not the disk's fault.

    Libraries written in other languages wrap the operating system's error in their own; its text is recognised.
    """
    number = getattr(error, "errno", None)
    if number is None and "os error" in str(error):
        number = next((code for code in _REASONS if f"(os error {code})" in str(error)), None)
    reason = _REASONS.get(number) if number is not None else None
    return StorageError(f"cannot write {path}: {reason}") if reason else None


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals inside the block into a StorageError that names ``path`` and the fix."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        translated = storage_error(error, path)
        if translated is None:
            raise
        raise translated from error


def sync_file(path: Path) -> None:
    """Forces the content of ``path`` to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Forces the names inside the folder ``path`` to the disk, where the system lets a folder be synced."""
    with suppress(PermissionError):  # Windows opens no folders, and its renames are journaled
        sync_file(path)


def make_folder(path: Path) -> Path:
    """Creates ``path`` with its parents if needed and returns it.

    :raises StorageError: it cannot be created.
    """
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Replaces ``path`` by ``content``: after a crash at any instant the old or the new file is there, whole.

    :raises StorageError: the disk is full, read-only or not ours; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    with storage_errors(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def atomic_write_text(path: Path, text: str) -> None:
    """:func:`atomic_write_bytes` of ``text`` as UTF-8."""
    atomic_write_bytes(path, text.encode("utf-8"))


def sha256_of_file(path: Path) -> str:
    """SHA-256 of the content of ``path`` in hexadecimal, read in pieces."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
