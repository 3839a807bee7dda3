"""Models of the ModelScope hub, over its HTTP interface."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from owngpt.errors import DownloadError
from owngpt.formats.hub.download import Access, read_json
from owngpt.formats.hub.files import RemoteFile
from owngpt.formats.hub.selection import check_count, select
from owngpt.formats.hub.spec import Spec

DEFAULT_REVISION = "master"
DEFAULT_ENDPOINT = "https://www.modelscope.cn"


@dataclass(frozen=True)
class Repository:
    """A model of the hub: what will be taken, and what is said of it."""

    files: list[RemoteFile]
    licence: str
    access: Access


def endpoint() -> str:
    """MODELSCOPE_ENDPOINT, else the host in MODELSCOPE_DOMAIN, which the hub's own library knows, else the hub itself."""
    domain = os.environ.get("MODELSCOPE_DOMAIN", "")
    return (os.environ.get("MODELSCOPE_ENDPOINT") or (f"https://{domain}" if domain else DEFAULT_ENDPOINT)).rstrip("/")


def look_up(spec: Spec) -> Repository:
    """Ask the hub for a model's files.

    :raises DownloadError: it is not there, not for everyone, holds no weights that we take, or the hub cannot be reached.
    """
    token = os.environ.get("MODELSCOPE_API_TOKEN", "")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    access = Access(urlsplit(endpoint()).netloc, spec.name, headers, "MODELSCOPE_API_TOKEN")
    revision = spec.revision or DEFAULT_REVISION
    base = f"{endpoint()}/api/v1/models/{spec.name}"
    listed = _data(read_json(f"{base}/repo/files", access, parameters={"Revision": revision, "Recursive": "true"}), access)
    entries = listed.get("Files")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DownloadError(f"{access.host} lists no files of {spec.name}; check its address")
    check_count(len(entries), f"modelscope:{spec.name}")
    remote = [_remote(entry, base, revision) for entry in entries if entry.get("Type") != "tree"]
    files = select(remote, spec.choice, f"modelscope:{spec.name}")
    if lost := [file.name for file in files if len(file.sha256) != 64]:
        raise DownloadError(f"{access.host} says no SHA-256 of {lost[0]}, so it could not be checked; use another hub")
    about = _data(read_json(base, access, parameters={"Revision": revision}), access)
    return Repository(files, " ".join(str(about.get("License") or "not stated; ask its makers").split())[:200], access)


def _data(answer: Any, access: Access) -> dict[str, Any]:
    data = answer.get("Data") if isinstance(answer, dict) else None
    if not isinstance(data, dict):
        said = " ".join(str(answer.get("Message", "")).split())[:200] if isinstance(answer, dict) else ""
        raise DownloadError(f"{access.host} does not show {access.what}{': ' * bool(said)}{said}; check the spelling")
    return data


def _remote(entry: dict[str, Any], base: str, revision: str) -> RemoteFile:
    name, size = str(entry.get("Path") or entry.get("Name") or ""), entry.get("Size")
    url = f"{base}/repo?Revision={quote(revision, safe='')}&FilePath={quote(name, safe='')}"
    sound = isinstance(size, int) and not isinstance(size, bool) and size >= 0
    return RemoteFile(name, url, size if sound else None, str(entry.get("Sha256") or "").lower())
