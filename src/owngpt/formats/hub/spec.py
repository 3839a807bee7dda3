"""What a person types after ``owngpt pull``, taken apart."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import unquote, urlsplit

from owngpt.errors import UsageError
from owngpt.formats.hub.catalogue import CATALOGUE

Kind = Literal["catalogue", "hf", "modelscope", "pypi", "url"]

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_-])?"
_HUB = re.compile(
    rf"(?P<name>(?:{_PART}/)?{_PART})(?::(?P<choice>[A-Za-z0-9_.-]{{1,200}}))?(?:@(?P<revision>[A-Za-z0-9_./-]{{1,200}}))?"
)
_PACKAGE = re.compile(r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?)(?:==(?P<revision>[A-Za-z0-9.+!_-]{1,64}))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
HUB_NAME = re.compile(rf"{_PART}/{_PART}")
FORMS = "hf:ORG/NAME, modelscope:ORG/NAME, pypi:PACKAGE, https://…#sha256=…"


@dataclass(frozen=True)
class Spec:
    """Where a model comes from."""

    kind: Kind
    name: str
    """org/name, a package, an address, or a name of the catalogue."""
    revision: str = ""
    """A branch, tag or commit; the version of a package; "" for the newest."""
    choice: str = ""
    """Which of several .gguf files: the file's name, or a part of it such as Q4_K_M."""
    sha256: str = ""

    def __str__(self) -> str:
        if self.kind in ("catalogue", "url"):
            return self.name
        mark = "==" if self.kind == "pypi" else "@"
        return f"{self.kind}:{self.name}{':' * bool(self.choice)}{self.choice}{mark * bool(self.revision)}{self.revision}"


def looks_like_spec(text: str) -> bool:
    """Whether `text` says itself where it comes from, rather than naming a file here."""
    return text in CATALOGUE or text.startswith(("hf:", "modelscope:", "pypi:", "http://", "https://"))


def parse(text: str, sha256: str | None = None) -> Spec:
    """The parts of `text`; ``org/name`` alone is a name at Hugging Face.

    :param sha256: of the file behind an address, when the address itself does not say it.
    :raises UsageError: it has none of the forms that there are.
    """
    if sha256 is not None and not text.startswith(("http://", "https://")):
        raise UsageError(f"--sha256 goes with an address; {text} is checked against what its own source says")
    if text in CATALOGUE:
        return Spec("catalogue", text)
    if text.startswith(("http://", "https://")):
        return _address(text, sha256)
    kind, colon, rest = text.partition(":")
    if colon and kind == "hf":
        return _hub("hf", rest, text)
    if colon and kind == "modelscope":
        return _hub("modelscope", rest, text)
    if colon and kind == "pypi":
        return _package(rest, text)
    if HUB_NAME.fullmatch(text.partition("@")[0].partition(":")[0]):
        return _hub("hf", text, text)
    close = difflib.get_close_matches(text, CATALOGUE, n=2, cutoff=0.4)
    near = f"; did you mean {' or '.join(close)}?" if close else ""
    raise UsageError(f"{text!r} is nothing that can be pulled{near} (there are {FORMS}, and the names {', '.join(CATALOGUE)})")


def _hub(kind: Literal["hf", "modelscope"], rest: str, text: str) -> Spec:
    found = _HUB.fullmatch(rest)
    if found is None or ".." in rest or "--" in found["name"] or (kind == "modelscope" and "/" not in found["name"]):
        raise UsageError(
            f"{text!r} is not a model of a hub; it is written {kind}:ORG/NAME, {kind}:ORG/NAME@REVISION or {kind}:ORG/NAME:FILE"
        )
    if (found["revision"] or "x").startswith(("/", "-")):
        raise UsageError(f"{text!r} names the revision {found['revision']!r}; give a branch, a tag or a commit")
    return Spec(kind, found["name"], found["revision"] or "", found["choice"] or "")


def _package(rest: str, text: str) -> Spec:
    found = _PACKAGE.fullmatch(rest)
    if found is None:
        raise UsageError(f"{text!r} is not a package; it is written pypi:PACKAGE or pypi:PACKAGE==VERSION")
    return Spec("pypi", re.sub(r"[-_.]+", "-", found["name"]).lower(), found["revision"] or "")  # as PEP 503 spells it


def _address(text: str, sha256: str | None) -> Spec:
    parts = urlsplit(text)
    said = parts.fragment.removeprefix("sha256=").lower()
    given = (sha256 or said).lower().removeprefix("sha256:")
    if sha256 and said and given != said:
        raise UsageError(f"the address says SHA-256 {said}, --sha256 says {given}; give the right one")
    if not _SHA256.fullmatch(given):
        raise UsageError(
            f"{text} has no SHA-256 to check it against; append #sha256=… or give --sha256: 64 hexadecimal digits "
            "from someone you trust"
        )
    if parts.username or parts.password:
        raise UsageError("the address holds a password, which would be kept in the cache; leave it out")
    bare = parts._replace(fragment="").geturl()
    return Spec("url", bare, sha256=given)


def file_name(address: str) -> str:
    """The name of the file at the end of an address."""
    return unquote(urlsplit(address).path.rpartition("/")[2])


def with_revision(spec: Spec, revision: str) -> Spec:
    """The same model at a revision that is known now."""
    return replace(spec, revision=revision)
