"""One run a folder: a lock that the system itself releases when its holder ends, however it ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType
from typing import IO

from owngpt.config.files import make_folder, storage_errors
from owngpt.errors import FolderBusyError

if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[str]) -> bool:
        file.seek(1 << 20)  # beyond the text, which others must still be able to read
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(file: IO[str]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class RunLock:
    """Holds ``folder/lock`` while a run writes to ``folder``; a context manager.

    The lock belongs to the open file, not to the name (flock(2)): a file left by a dead process blocks nobody.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        self._file: IO[str] | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._file is not None

    def acquire(self) -> RunLock:
        """Takes the lock.

        :raises FolderBusyError: a living process holds it; the message names its process id.
        :raises StorageError: the folder cannot be written.
        """
        make_folder(self.path.parent)
        with storage_errors(self.path):
            file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 - kept open as long as the lock is held
        if not _try_lock(file):
            file.seek(0)
            holder = file.read(32).strip() or "unknown"
            file.close()
            raise FolderBusyError(
                f"{self.path.parent} is in use by another run (process {holder}); "
                "wait for it, stop it, or choose another output folder"
            )
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file
        return self

    def release(self) -> None:
        """Gives the lock back; the file stays, since deleting it would let two runs hold two files of one name."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> RunLock:
        return self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()
