"""The ordinary clients of package registries, run as the user would run them, with the user's settings.

Which host is asked, through which proxy and with which credentials is the client's own business.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from owngpt.config.offline import refuse_offline
from owngpt.errors import DownloadError

TIME_LIMIT_SECONDS = 1800
_GLANCE_SECONDS = 0.2
_SAID_BYTES = 1 << 20
"""A client that says more than this has only the end of it read."""

Watch = Callable[[str], None]
"""Called five times a second while a client runs, with what it has said on stdout so far."""


def run_client(
    command: Sequence[str],
    package: str,
    work: Path,
    *,
    environment: Mapping[str, str] | None = None,
    watch: Watch | None = None,
    time_limit: float = TIME_LIMIT_SECONDS,
) -> str:
    """What `command` says on stdout, once it has ended well; it runs in the folder `work` and is ended with us.

    :param package: what it is to download, for the message.
    :param time_limit: in seconds.
    :raises DownloadError: it cannot be started, failed, or did not end in time, or the person asked for no network.
    """
    refuse_offline(package)
    client = "pip" if "pip" in command else Path(command[0]).name
    with tempfile.TemporaryFile(dir=work) as said, tempfile.TemporaryFile(dir=work) as complained:
        try:
            process = subprocess.Popen(
                command, cwd=work, stdin=subprocess.DEVNULL, stdout=said, stderr=complained, env=environment
            )
        except OSError as error:
            raise DownloadError(f"{client} cannot be started ({error.strerror}); repair it") from error
        try:
            end = time.monotonic() + time_limit
            while (code := _glance(process)) is None:
                if time.monotonic() > end:
                    raise DownloadError(
                        f"{client} did not finish downloading {package} in {time_limit / 60:g} minutes; try again"
                    )
                if watch is not None:
                    watch(_text(said))
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if code != 0:
            raise DownloadError(f"{client} could not download {package}: {_reason(_text(complained))}")
        return _text(said)


def pip_download(
    requirement: str,
    work: Path,
    *,
    sha256: str = "",
    wheel_only: bool = False,
    environment: Mapping[str, str] | None = None,
    watch: Watch | None = None,
) -> Path:
    """The archive of `requirement` ("name" or "name==version"), downloaded into a folder of its own in `work`.

    :param sha256: pip itself refuses an archive with another hash before it looks inside.
    :param wheel_only: take no source archive, for which pip would run the package's own build to learn its metadata.
    :raises DownloadError: pip is missing or failed.
    """
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"{requirement} is fetched with pip, which this Python lacks; run `{sys.executable} -m ensurepip` first"
        )
    requirements = work / "requirements.txt"
    requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n" if sha256 else f"{requirement}\n", encoding="utf-8")
    target = work / "download"
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--no-deps"]
    command += ["--only-binary", ":all:"] * wheel_only + ["--require-hashes"] * bool(sha256)
    command += ["--requirement", str(requirements), "--dest", str(target)]
    run_client(command, requirement, work, environment=environment, watch=watch)
    return only_file(target, requirement)


def only_file(folder: Path, package: str) -> Path:
    """The one file that a client left in `folder`.

    :raises DownloadError: there are none or several.
    """
    files = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    if len(files) != 1:
        raise DownloadError(f"the download of {package} gave {len(files)} files instead of one; try again")
    return files[0]


def _glance(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code, or None while the process is still at it."""
    try:
        return process.wait(_GLANCE_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _text(file: IO[bytes]) -> str:
    """The end of a file that another process may be writing to; its position is not ours to move."""
    size = os.fstat(file.fileno()).st_size
    start = max(size - _SAID_BYTES, 0)
    return os.pread(file.fileno(), size - start, start).decode("utf-8", errors="replace")


def _reason(complaint: str) -> str:
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    named = (line for line in reversed(lines) if "error" in line.lower() or line.startswith("E:"))
    return next(named, lines[-1] if lines else "no reason given")[:300]
