"""A model hub on this machine: speaks the protocols of Hugging Face and ModelScope over real sockets, and misbehaves when told.

Large files are handed out by a second server, as by a content network: the hub only leads to it.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".gguf", ".bin")


@dataclass
class Fault:
    """What happens instead of, or to, an honest answer."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """The connection breaks after so many bytes of the body."""
    content: bytes | None = None
    endless: bool = False
    """The body has no announced end and goes on for ever."""
    no_ranges: bool = False
    redirect: str = ""


class Hub:
    """The hub's content, the faults to come, and the requests that came."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, bytes]] = {}
        self.about: dict[str, Any] = {"cardData": {"license": "apache-2.0"}, "gated": False}
        self.listing: list[dict[str, Any]] | None = None
        """What is listed instead of the truth."""
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        """By the end of the path; each happens once, in order."""
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.token = ""
        """Without it nothing is shown, if it is set."""
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), self._handler()) for _ in range(2)]
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        """The hub's address."""
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def network_url(self) -> str:
        """The address that large files come from."""
        return f"http://127.0.0.1:{self._servers[1].server_port}"

    def close(self) -> None:
        """Stop answering."""
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def paths(self, method: str = "GET") -> list[str]:
        """What was asked for, without queries."""
        return [urlsplit(path).path for asked, path, _ in self.requests if asked == method]

    def ranges(self) -> list[str]:
        """The ranges that were asked for."""
        return [headers["Range"] for _, _, headers in self.requests if "Range" in headers]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None: ...

            def do_GET(self) -> None:
                with suppress(BrokenPipeError, ConnectionResetError):
                    hub.answer(self)

            do_HEAD = do_GET

        return Handler

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """One request."""
        path = unquote(urlsplit(request.path).path)
        self.requests.append((request.command, request.path, dict(request.headers.items())))
        queue = next((queue for end, queue in self.faults.items() if path.endswith(end) and queue), [])
        fault = queue.pop(0) if queue and request.command == "GET" else Fault()
        if fault.redirect:
            return self._send(request, 302, b"", {"Location": fault.redirect})
        if fault.status:
            return self._send(request, fault.status, b"refused", fault.headers)
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}" and not path.startswith("/network/"):
            return self._send(request, 401, b"", {"X-Error-Code": "GatedRepo"})
        found = self._find(path, parse_qs(urlsplit(request.path).query))
        if found is None:
            code = "EntryNotFound" if "/resolve/" in path else "RepoNotFound"
            return self._send(request, 404, b"", {"X-Error-Code": code})
        status, content, headers = found
        self._body(request, status, content if fault.content is None else fault.content, headers, fault)
        return None

    def _find(self, path: str, query: dict[str, list[str]]) -> tuple[int, bytes, dict[str, str]] | None:
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) >= 6 and parts[4] == "revision":
            return self._hugging_face("/".join(parts[2:4]), parts[5])
        if len(parts) >= 5 and parts[2] == "resolve":
            return self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        if parts[:3] == ["api", "v1", "models"] and len(parts) >= 5:
            return self._modelscope("/".join(parts[3:5]), parts[5:], query)
        if parts[0] in ("network", "plain"):
            content = next((files[parts[-1]] for files in self.models.values() if parts[-1] in files), None)
            return None if content is None else (200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'})
        return None

    def _hugging_face(self, repository: str, revision: str) -> tuple[int, bytes, dict[str, str]] | None:
        if repository not in self.models:
            return None
        if revision not in ("main", "v1", COMMIT):
            return 404, b"", {"X-Error-Code": "RevisionNotFound"}
        siblings = (
            self.listing if self.listing is not None else [self._sibling(*item) for item in self.models[repository].items()]
        )
        return 200, json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings, **self.about}).encode(), {}

    @staticmethod
    def _sibling(name: str, content: bytes) -> dict[str, Any]:
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git}
        if name.endswith(LARGE):
            entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return entry

    def _resolve(self, repository: str, revision: str, name: str) -> tuple[int, bytes, dict[str, str]] | None:
        if revision not in ("main", "v1", COMMIT) or name not in self.models.get(repository, {}):
            return None
        content = self.models[repository][name]
        entry = self._sibling(name, content)
        headers = {"X-Repo-Commit": COMMIT}
        if "lfs" not in entry:
            return 200, content, {**headers, "ETag": f'"{entry["blobId"]}"'}
        linked = {"X-Linked-Etag": f'"{entry["lfs"]["sha256"]}"', "X-Linked-Size": str(len(content))}
        return 302, b"", {**headers, **linked, "Location": f"{self.network_url}/network/{name}"}

    def _modelscope(
        self, repository: str, rest: list[str], query: dict[str, list[str]]
    ) -> tuple[int, bytes, dict[str, str]] | None:
        if repository not in self.models:
            return 404, json.dumps({"Code": 10010205001, "Message": "no such model", "Success": False}).encode(), {}
        files = self.models[repository]
        if rest == ["repo"]:
            name = query["FilePath"][0]
            return (
                (302, b"", {"Location": f"{self.network_url}/network/{name}"}) if name.endswith(LARGE) else (200, files[name], {})
            )
        if rest == ["repo", "files"]:
            entries = [
                {"Path": name, "Type": "blob", "Size": len(content), "Sha256": hashlib.sha256(content).hexdigest()}
                for name, content in files.items()
            ]
            data: dict[str, Any] = {"Files": [{"Path": "docs", "Type": "tree", "Size": 0, "Sha256": ""}, *entries]}
        else:
            data = {"Name": repository, "License": "Apache License 2.0"}
        return 200, json.dumps({"Code": 200, "Success": True, "Data": data}).encode(), {}

    def _body(self, request: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str], fault: Fault) -> None:
        if fault.endless:
            request.send_response(200)
            request.send_header("Connection", "close")
            request.end_headers()
            while True:
                request.wfile.write(bytes(1 << 16))
        asked = request.headers.get("Range", "")
        if asked and status == 200 and not fault.no_ranges:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                return self._send(request, 416, b"", {})
            status, headers = 206, {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            content = content[start:]
        return self._send(request, status, content, headers, fault.cut_after)

    @staticmethod
    def _send(
        request: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str], cut_after: int | None = None
    ) -> None:
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "HEAD":
            return
        request.wfile.write(content[:cut_after])
        if cut_after is not None:
            request.wfile.flush()
            request.close_connection = True


def running() -> Iterator[Hub]:
    """A hub for as long as a fixture lives."""
    hub = Hub()
    try:
        yield hub
    finally:
        hub.close()
