"""Models of the Hugging Face hub, in the cache that its own libraries share.

`huggingface_hub` says which hub is meant, who asks and where the cache is (HF_ENDPOINT, HF_TOKEN, HF_HOME).
Its downloads start over when they are cut off, have no bound and are not compared with the hub's checksums, so the bytes come
through :mod:`owngpt.formats.hub.download`. The cache is laid out as it documents: blobs/DIGEST, snapshots/COMMIT/NAME as links
to them, refs/REVISION with the commit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from filelock import FileLock

from owngpt.config.files import atomic_write_text, make_folder, storage_errors
from owngpt.errors import DownloadError
from owngpt.formats.hub.download import Access, fetch, read_json
from owngpt.formats.hub.files import Progress, RemoteFile, check, require_space, total_size
from owngpt.formats.hub.selection import ADAPTER, check_count, select
from owngpt.formats.hub.spec import Spec

DEFAULT_REVISION = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Repository:
    """A model of the hub at one commit: what will be taken, and what is said of it."""

    spec: Spec
    commit: str
    files: list[RemoteFile]
    licence: str
    access: Access

    @property
    def missing_size(self) -> int:
        """Bytes that are not in the cache yet."""
        blobs = storage_folder(self.spec) / "blobs"
        return total_size(file for file in self.files if not (blobs / file.digest).exists())


def storage_folder(spec: Spec) -> Path:
    """The model's folder in the cache of Hugging Face."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{spec.name.replace('/', '--')}"


def look_up(spec: Spec) -> Repository:
    """Ask the hub for a model's files.

    :raises DownloadError: it is not there, not for everyone, holds no weights that we take, or the hub cannot be reached.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    endpoint = constants.ENDPOINT.rstrip("/")
    headers = {key.title(): value for key, value in build_hf_headers(library_name="owngpt").items()}
    access = Access(urlsplit(endpoint).netloc, spec.name, headers, "HF_TOKEN")
    revision = quote(spec.revision or DEFAULT_REVISION, safe="")
    answer = read_json(f"{endpoint}/api/models/{spec.name}/revision/{revision}", access, parameters={"blobs": "true"})
    commit, siblings = _parts(answer, access)
    check_count(len(siblings), f"hf:{spec.name}")
    base = f"{endpoint}/{spec.name}/resolve/{commit}"
    files = select([_remote(sibling, base, access) for sibling in siblings], spec.choice, f"hf:{spec.name}")
    if lost := [file.name for file in files if not _DIGEST.fullmatch(file.digest) or file.size is None]:
        raise DownloadError(f"{access.host} says no size or checksum of {lost[0]}, so it could not be checked; use another hub")
    return Repository(spec, commit, files, _licence(answer), access)


def _parts(answer: Any, access: Access) -> tuple[str, list[dict[str, Any]]]:
    commit = answer.get("sha") if isinstance(answer, dict) else None
    siblings = answer.get("siblings") if isinstance(answer, dict) else None
    sound = isinstance(siblings, list) and all(
        isinstance(part, dict) and isinstance(part.get("rfilename"), str) for part in siblings
    )
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit) or not sound:
        raise DownloadError(f"{access.host} does not answer as a model hub does; check HF_ENDPOINT")
    assert isinstance(siblings, list)
    return commit, siblings


def _remote(sibling: dict[str, Any], base: str, access: Access) -> RemoteFile:
    name, size, large = sibling["rfilename"], sibling.get("size"), sibling.get("lfs") or {}
    sha256, git_sha1 = large.get("sha256") or "", "" if large else sibling.get("blobId") or ""
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        size = None
    return RemoteFile(name, f"{base}/{quote(name)}", size, str(sha256).lower(), str(git_sha1).lower())


def _licence(answer: dict[str, Any]) -> str:
    card = answer.get("cardData")
    said = card.get("license_name") or card.get("license") if isinstance(card, dict) else None
    text = ", ".join(map(str, said)) if isinstance(said, list) else str(said or "not stated; ask its makers")
    gated = "; gated: its makers let in whom they know" if answer.get("gated") else ""
    return " ".join(text.split())[:200] + gated


def download(repository: Repository, progress: Progress | None) -> Path:
    """Bring the files into the cache and return the snapshot's folder; its config.json is the last file to appear there.

    :raises DownloadError: a file is not to be had, or not what was promised.
    :raises StorageError: the disk cannot hold them.
    """
    storage = storage_folder(repository.spec)
    blobs, snapshot = storage / "blobs", storage / "snapshots" / repository.commit
    locks = make_folder(storage.parent / ".locks" / storage.name)
    require_space(blobs, repository.missing_size)
    for file in repository.files:
        with FileLock(locks / f"{file.digest}.lock"):  # the lock that huggingface_hub takes for this blob
            blob = blobs / file.digest
            if blob.exists():
                check(blob, file)
            else:
                fetch(file, blob, repository.access, progress=progress)
    with storage_errors(snapshot), FileLock(locks / "snapshots.lock"):
        make_folder(snapshot)
        for file in sorted(repository.files, key=lambda file: file.name == "config.json"):
            _link(snapshot / file.name, blobs / file.digest)
        if repository.spec.revision != repository.commit:
            reference = storage / "refs" / (repository.spec.revision or DEFAULT_REVISION)
            make_folder(reference.parent)
            atomic_write_text(reference, repository.commit)
    return snapshot


def _link(name: Path, blob: Path) -> None:
    """Make `name` a relative link to `blob`, or a copy of it where the disk knows no links."""
    if name.exists() and name.samefile(blob):
        return
    temporary = name.with_name(f".{name.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(os.path.relpath(blob, name.parent))
    except OSError:
        os.link(blob, temporary)
    os.replace(temporary, name)


def find_snapshot(spec: Spec) -> Path | None:
    """The folder (or the chosen .gguf) of a model in the cache, if it is all there, whoever put it there."""
    storage = storage_folder(spec)
    commit = spec.revision
    if not _COMMIT.fullmatch(commit):
        try:
            commit = (storage / "refs" / (spec.revision or DEFAULT_REVISION)).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
    if not _COMMIT.fullmatch(commit):
        return None
    snapshot = storage / "snapshots" / commit
    names = sorted(path.name for path in snapshot.iterdir() if path.exists()) if snapshot.is_dir() else []
    if spec.choice:
        return _chosen(snapshot, names, spec)
    return snapshot if _is_whole(snapshot, names) else None


def _chosen(snapshot: Path, names: Iterable[str], spec: Spec) -> Path | None:
    try:
        files = select([RemoteFile(name, "") for name in names], spec.choice, str(spec))
    except DownloadError:
        return None
    return snapshot / files[-1].name


def _is_whole(snapshot: Path, names: list[str]) -> bool:
    """Whether a folder holds an adapter, or a model with a tokenizer; other programs fetch single files as they need them."""
    if set(names) >= ADAPTER:  # its tokenizer may be the base's
        return True
    if "config.json" in names and ("tokenizer.json" in names or {"vocab.json", "merges.txt"} <= set(names)):
        if "model.safetensors" in names:
            return True
        shards = [name for name in names if re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", name)]
        return "model.safetensors.index.json" in names and bool(shards) and len(shards) == int(shards[0][15:20])
    return sum(name.endswith(".gguf") for name in names) == 1
