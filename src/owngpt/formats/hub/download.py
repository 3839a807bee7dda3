"""Downloads over HTTP that go on where they stopped, end when they should, and are kept only if they are what was promised.

While a file is coming it has a neighbour's name, which a later call goes on with (RFC 9110, range requests).
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from owngpt.config.files import TEMPORARY_SUFFIX, make_folder, storage_errors, sync_file
from owngpt.config.offline import refuse_offline
from owngpt.errors import DownloadError
from owngpt.formats.hub.files import Progress, RemoteFile, check, require_space

if TYPE_CHECKING:
    import httpx2

Result = TypeVar("Result")

ATTEMPTS = 5
"""In a row without a single new byte."""
MAXIMUM_REDIRECTS = 10
LONGEST_WAIT_SECONDS = 60.0
"""A server that asks for more is believed, and the person told."""
CONNECT_SECONDS = 20.0
SILENCE_SECONDS = 60.0
MAXIMUM_ANSWER_BYTES = 32 * 2**20
"""Of an answer that is read into memory."""
_LOOK_BYTES = 1 << 24
"""How often the disk is looked at while a file of unknown length comes."""
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Access:
    """How a source is asked, and what it is called in messages."""

    host: str
    what: str
    """What is asked for, as the person named it."""
    headers: Mapping[str, str] = field(default_factory=dict)
    token_name: str = ""
    """The environment variable by which a person is let in, if there is one."""


class _PassingError(Exception):
    """Something that may go away by itself."""

    def __init__(self, failure: DownloadError, wait: float | None = None) -> None:
        super().__init__(str(failure))
        self.failure = failure
        self.wait = wait


def fetch(
    file: RemoteFile,
    target: Path,
    access: Access,
    *,
    progress: Progress | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Download `file` to `target`, which appears whole and checked or not at all.

    What came of an earlier try is gone on with; what is there after a failure stays for the next.

    :raises DownloadError: the source refuses, cannot be reached, or sends something else than was promised.
    :raises StorageError: the disk cannot hold it.
    """
    make_folder(target.parent)
    partial = target.with_name(f".{target.name[:100]}.{file.digest[:12]}{TEMPORARY_SUFFIX}")
    with storage_errors(target), _client(access) as client:
        partial.touch()
        _persist(lambda: _receive(client, file, partial, access, progress), sleep, size=lambda: partial.stat().st_size)
        check(partial, file)
        sync_file(partial)
        os.replace(partial, target)


def read_json(
    url: str, access: Access, *, parameters: Mapping[str, str] | None = None, sleep: Callable[[float], None] = time.sleep
) -> Any:
    """The JSON that `url` answers with.

    :raises DownloadError: it answers with something else, too much, or not at all.
    """
    with _client(access) as client:

        def ask() -> bytes:
            with _answer(client, url, access, parameters=parameters) as response:
                content = bytearray()
                for piece in response.iter_bytes():
                    content += piece
                    if len(content) > MAXIMUM_ANSWER_BYTES:
                        raise DownloadError(
                            f"{access.host} answers with more than {MAXIMUM_ANSWER_BYTES:,} bytes; try another source"
                        )
                return bytes(content)

        content = _persist(ask, sleep)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DownloadError(f"{access.host} does not answer as a model hub does (no JSON); check its address") from error


def _persist(action: Callable[[], Result], sleep: Callable[[float], None], size: Callable[[], int] = lambda: 0) -> Result:
    """The result of `action`, tried again while its failures may pass by themselves; progress in `size` renews the patience."""
    failed, before = 0, size()
    while True:
        try:
            return action()
        except _PassingError as error:
            failed, before = (failed + 1, before) if size() <= before else (1, size())
            if failed >= ATTEMPTS:
                raise error.failure from error
            if error.wait is not None and error.wait > LONGEST_WAIT_SECONDS:
                raise DownloadError(f"{error.failure}; it asks to be left alone for {error.wait:,.0f} seconds") from error
            # Waits spread by chance, so that many clients that failed at once do not come back at once.
            sleep(error.wait if error.wait is not None else 2.0 ** (failed - 1) * random.SystemRandom().uniform(0.5, 1.0))


def _receive(client: httpx2.Client, file: RemoteFile, partial: Path, access: Access, progress: Progress | None) -> None:
    """Append to `partial` what is missing of `file`."""
    have = partial.stat().st_size
    if file.size is not None and have >= file.size:
        if have == file.size:
            return
        os.truncate(partial, have := 0)
    with _answer(client, file.url, access, start=have) as response:
        if response.status_code == 416:  # nothing after what is here: it is whole, or the file is not what it was
            return
        if have and not _continues(response, have):
            os.truncate(partial, have := 0)
        length = _length(response)
        size = file.size if file.size is not None else None if length is None else have + length
        require_space(partial.parent, (size or 0) - have)
        with open(partial, "ab", buffering=0) as out:
            for piece in response.iter_bytes():  # as they come, so that what came before a cut is kept
                out.write(piece)
                have += len(piece)
                _bounded(partial, file.name, have, len(piece), size)
                if progress is not None:
                    progress(file.name, have, size or 0)
    if size is not None and have < size:
        raise _PassingError(_cut_off(access))


def _bounded(partial: Path, name: str, have: int, new: int, size: int | None) -> None:
    """Stop a file that goes on after its end, or that never said where it ends while the disk fills."""
    if size is None and have // _LOOK_BYTES > (have - new) // _LOOK_BYTES:
        require_space(partial.parent, 0)
    if size is not None and have > size:
        partial.unlink()
        raise DownloadError(f"{name} goes on after the {size:,} bytes that were promised; it was removed: take it from elsewhere")


def _continues(response: httpx2.Response, have: int) -> bool:
    """Whether the answer begins where we stopped; servers may send everything instead."""
    return response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")


def _length(response: httpx2.Response) -> int | None:
    said = response.headers.get("Content-Length", "")
    packed = response.headers.get("Content-Encoding", "identity") != "identity"
    return int(said) if said.isascii() and said.isdigit() and not packed else None


def _client(access: Access) -> httpx2.Client:
    """Follows a bounded number of redirects; credentials stay with the host that they are for, which httpx sees to."""
    refuse_offline(access.what)
    import httpx2  # takes a moment, which only a download has to wait for

    def same_secrecy(response: httpx2.Response) -> None:
        target = response.headers.get("Location", "")
        if response.is_redirect and response.request.url.scheme == "https" and target.lower().startswith("http:"):
            raise DownloadError(f"{access.host} leads from an encrypted to an open connection; take the file from elsewhere")

    return httpx2.Client(
        headers={"User-Agent": "owngpt", "Accept-Encoding": "identity", **access.headers},
        follow_redirects=True,
        max_redirects=MAXIMUM_REDIRECTS,
        timeout=httpx2.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
        event_hooks={"response": [same_secrecy]},
    )


@contextmanager
def _answer(
    client: httpx2.Client, url: str, access: Access, *, start: int = 0, parameters: Mapping[str, str] | None = None
) -> Iterator[httpx2.Response]:
    """A response that may be read, from byte `start` on if the server can; all that goes wrong is told in a sentence."""
    import httpx2

    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        with client.stream("GET", url, headers=headers, params=parameters) as response:
            if not response.is_success and not (response.status_code == 416 and start):
                raise refusal(response.status_code, response.headers, access)
            yield response
    except httpx2.ConnectError as error:
        failure = DownloadError(f"{access.host} cannot be reached: {_unreachable(str(error))}")
        raise _PassingError(failure) if start else failure from error
    except httpx2.TooManyRedirects as error:
        raise DownloadError(f"{access.host} leads from one address to the next, more than {MAXIMUM_REDIRECTS} times") from error
    except (httpx2.UnsupportedProtocol, httpx2.InvalidURL, httpx2.ProxyError) as error:
        raise DownloadError(f"{access.host} cannot be asked: {error}; check the address and the proxy settings") from error
    except httpx2.TransportError as error:
        raise _PassingError(_cut_off(access)) from error
    except httpx2.RequestError as error:
        raise DownloadError(f"{access.host} sends what cannot be read: {error}") from error


def _cut_off(access: Access) -> DownloadError:
    return DownloadError(f"the connection to {access.host} broke, again and again; pull again to go on from where it stopped")


def _unreachable(reason: str) -> str:
    if any(text in reason for text in ("Name or service not known", "name resolution", "nodename", "No address")):
        return "its name is not known here; check the network and the spelling"
    return f"{reason.partition('] ')[2] or reason}; check the network"


def refusal(status: int, headers: Mapping[str, str], access: Access) -> Exception:
    """The failure that a status is, which may be one that passes."""
    what, host, token = access.what, access.host, access.token_name
    code = headers.get("X-Error-Code", "")
    sent = "Authorization" in access.headers
    if status in _PASSING:
        reason = "says that it was asked too often" if status == 429 else "has a fault of its own"
        return _PassingError(DownloadError(f"{host} {reason} ({status}); try again later"), _wait(headers))
    if code == "GatedRepo" or (status == 403 and code != "RepoNotFound"):
        way = f": accept its terms on its page there, then set {token} to a token of that account" if token else ""
        return DownloadError(f"{host} gives {what} only to those it knows ({status}){way}")
    if code == "RevisionNotFound":
        return DownloadError(f"{host} has {what}, but not at that revision; check the part after @")
    if status == 401 or code == "RepoNotFound":
        way = f"; the token in {token} does not open it" if sent else f"; set {token} if it is private" if token else ""
        return DownloadError(f"{host} has no {what}, or does not show it to everyone ({status}): check the spelling{way}")
    if status in (404, 410):
        return DownloadError(f"{host} has no {what} ({status}); check the spelling")
    return DownloadError(f"{host} refuses {what} ({status}{_said(headers)})")


def _said(headers: Mapping[str, str]) -> str:
    message = " ".join(headers.get("X-Error-Message", "").split())[:200]
    return f": {message}" if message else ""


def _wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks for: Retry-After in seconds or as a date, or the reset of its RateLimit header."""
    said = headers.get("Retry-After", "").strip()
    if said.isascii() and said.isdigit():
        return float(said)
    try:
        return max((parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds(), 0.0)
    except (TypeError, ValueError):
        pass
    reset = re.search(r"\bt=(\d{1,9})\b", headers.get("RateLimit", ""))
    return float(reset[1]) if reset else None
