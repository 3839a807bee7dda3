"""What a Debian package holds, without installing it: an `ar` archive (man 5 deb) with a compressed tar archive in it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from owngpt.errors import DataError

_MAGIC = b"!<arch>\n"
_HEADER_BYTES = 60
_MOST_BYTES = 2**30


@contextmanager
def data_archive(package: Path) -> Iterator[Path]:
    """The tar archive with the files of `package`, in a form that :mod:`tarfile` opens, while the block runs.

    Raises:
        DataError: this is no Debian package.
    """
    with tempfile.TemporaryDirectory(dir=package.parent, prefix=".data-") as work, open(package, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise DataError(f"{package.name} is no Debian package; try again")
        while (found := _member(file, package)) is not None:
            name, size = found
            if name.startswith("data.tar"):
                target = Path(work) / name
                _copy(file, target, size, package)
                yield _opened(target)
                return
            file.seek(size + size % 2, 1)
    raise DataError(f"{package.name} holds no files; try again")


def _member(file: BinaryIO, package: Path) -> tuple[str, int] | None:
    """Name and size of the next member, whose content follows; None at the end."""
    header = file.read(_HEADER_BYTES)
    if not header:
        return None
    size = header[48:58].strip()
    if len(header) < _HEADER_BYTES or header[58:] != b"`\n" or not size.isdigit() or int(size) > _MOST_BYTES:
        raise DataError(f"{package.name} is damaged; try again")
    return header[:16].decode("ascii", "replace").strip().rstrip("/"), int(size)


def _copy(file: BinaryIO, target: Path, size: int, package: Path) -> None:
    with open(target, "wb") as copy:
        while size and (block := file.read(min(size, 2**20))):
            copy.write(block)
            size -= len(block)
    if size:
        raise DataError(f"{package.name} is cut off; try again")


def _opened(archive: Path) -> Path:
    """Unpacks what Ubuntu compresses by Zstandard, which tarfile does not open; xz and gzip it does."""
    if archive.suffix != ".zst":
        return archive
    import pyarrow

    plain = archive.with_suffix("")
    with pyarrow.CompressedInputStream(str(archive), "zstd") as packed, open(plain, "wb") as copy:
        shutil.copyfileobj(packed, copy)
    return plain
