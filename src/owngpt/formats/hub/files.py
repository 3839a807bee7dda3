"""Files somewhere else: what they are promised to be, whether they turned out so, and how progress is told."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from owngpt.config.units import in_bytes
from owngpt.errors import DownloadError, StorageError

Say = Callable[[str], None]
"""Called with one line for the person who waits."""
Progress = Callable[[str, int, int], None]
"""Called with a file's name, its bytes that are here, and its bytes in all (0 when unknown)."""

RESERVE_BYTES = 256 * 2**20
"""Left free on a disk, since other programs need some too."""
_PIECE = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A file to download, and what it must turn out to be."""

    name: str
    url: str
    size: int | None = None
    """In bytes, if the source said so."""
    sha256: str = ""
    git_sha1: str = ""
    """How git names the content, which is what hubs say of small files: SHA-1 of a header with the length, then the content."""

    @property
    def digest(self) -> str:
        """The promised checksum, in hexadecimal."""
        return self.sha256 or self.git_sha1


def check(path: Path, promised: RemoteFile) -> None:
    """Compare a file with what was promised; one that is something else is removed.

    :raises DownloadError: its length or checksum is another; the message names both.
    """
    size = path.stat().st_size
    if promised.size is not None and size != promised.size:
        path.unlink()
        raise DownloadError(f"{promised.name} has {size:,} bytes, not the {promised.size:,} promised; it was removed: pull again")
    kind, found = ("SHA-256", _digest(path, "sha256")) if promised.sha256 else ("git SHA-1", _git_sha1(path, size))
    if promised.digest and found != promised.digest:
        path.unlink()
        raise DownloadError(
            f"{promised.name} has {kind} {found}, not {promised.digest}; it was changed on its way or at its source, "
            "and was removed: pull again, or take it from elsewhere"
        )


def _digest(path: Path, kind: str, header: bytes = b"") -> str:
    digest = hashlib.new(kind, header, usedforsecurity=False)
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _git_sha1(path: Path, size: int) -> str:
    return _digest(path, "sha1", b"blob %d\0" % size)


def require_space(folder: Path, needed: int) -> None:
    """Refuse to begin what the disk cannot hold.

    :param folder: may not exist yet.
    :param needed: in bytes.
    :raises StorageError: there is less.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed + RESERVE_BYTES > free:
        raise StorageError(
            f"{in_bytes(needed)} are needed in {existing} and {in_bytes(free)} are free there; free some space, or set "
            "OWNGPT_CACHE (HF_HOME for hf:) to a folder on a larger disk"
        )


def total_size(files: Iterable[RemoteFile]) -> int:
    """Bytes of all files whose size is known."""
    return sum(file.size or 0 for file in files)
