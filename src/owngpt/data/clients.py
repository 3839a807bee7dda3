"""The archives of named corpora, downloaded by the ordinary client of their registry."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from owngpt.config import clients
from owngpt.errors import DataError, DownloadError


def pip_download(package: str, sha256: str, work: Path) -> Path:
    """The archive of `package` ("name==version"); pip itself refuses one with another hash before it looks inside."""
    with _as_data_error():
        return clients.pip_download(package, work, sha256=sha256)


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
    with _as_data_error():
        return clients.only_file(target, package)


def apt_download(package: str, sha256: str, work: Path) -> Path:
    """The folder with the translated package descriptions of this system's sources, in an index of our own.

    apt verifies them against the signed release file; nothing of the system's own lists is touched.
    """
    apt = _apt("package descriptions")
    lists = work / "lists"
    settings = {"Acquire::Languages": "en", "Acquire::IndexTargets::deb::Packages::DefaultEnabled": "false"}
    options = _own_index(lists, work, settings)
    _run([apt, "update", "-qq", "--error-on=any", *options], package, work)
    return lists


def apt_packages(packages: str, sha256: str, work: Path) -> Path:
    """A folder with the newest .deb files of `packages` (names with spaces between) in this system's sources.

    apt checks their SHA-256 against an index that it verified; nothing is installed, and the system's lists are not touched.
    """
    apt = _apt(packages)
    target = work / "download"
    target.mkdir()
    options = _own_index(work / "lists", work, {"Acquire::Languages": "none"})
    _run([apt, "update", "-qq", "--error-on=any", *options], packages, work)
    _run([apt, "download", "-qq", *options, *packages.split()], packages, target)
    return target


def _apt(what: str) -> str:
    apt = shutil.which("apt-get")
    if apt is None:
        raise DataError(f"{what} are fetched with apt-get, which only Debian and its children have; name other data")
    return apt


def _own_index(lists: Path, work: Path, settings: Mapping[str, str]) -> list[str]:
    """apt's options for an index of this system's sources in `lists`."""
    cache = work / "cache"
    (lists / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    common = {"Dir::State::Lists": lists, "Dir::Cache": cache, "Acquire::GzipIndexes": "false", "APT::Sandbox::User": ""}
    return [part for name, value in {**common, **settings}.items() for part in ("-o", f"{name}={value}")]


CLIENTS: dict[str, Callable[[str, str, Path], Path]] = {
    "pip": pip_download,
    "npm": npm_download,
    "apt": apt_download,
    "apt-packages": apt_packages,
}


def _run(command: Sequence[str], package: str, work: Path) -> None:
    with _as_data_error():
        clients.run_client(command, package, work)


@contextmanager
def _as_data_error() -> Iterator[None]:
    """A failed download of text, with the way out that text has."""
    try:
        yield
    except DownloadError as error:
        raise DataError(f"{error}; check the network, or name a folder of text instead") from error
