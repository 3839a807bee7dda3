"""What a person names (files, folders) as a stream of documents, read in bounded memory.

A plain text or code file is one document; a row of jsonl, csv or parquet is one document. A document longer than a
megabyte comes in several parts. What cannot be read is named and counted, and the rest goes on.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from owngpt.data import encoding, outputs, records
from owngpt.errors import DataError

PART_CHARACTERS = 2**20
"""A document longer than this is handed on in parts."""

_BINARY_ENDINGS = """
.7z .a .apk .avi .bin .bmp .bz2 .ckpt .class .db .dll .doc .docx .dylib .eot .epub .exe .flac .gguf .gif .ico .jar .jpeg .jpg
.lz4 .m4a .mkv .mo .mobi .mov .mp3 .mp4 .mpeg .npy .npz .o .odt .ogg .onnx .otf .pdf .pickle .pkl .png .ppt .pptx .psd .pt .pth
.pyc .pyd .rar .rtf .safetensors .so .sqlite .sqlite3 .svgz .tar .tgz .tif .tiff .ttf .wasm .wav .webm .webp .whl .woff .woff2
.xls .xlsx .xz .zip .zst
"""
_NOT_TEXT = frozenset(_BINARY_ENDINGS.split())
_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules"})
_RECORD_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
_SAMPLES = 5


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that may hold text, as it was when the sources were listed."""

    path: Path
    kind: str
    """"text", "jsonl", "json", "csv" or "parquet"; a ".gz" ending is looked through."""
    size: int
    modified_ns: int
    """The later of the times of its content and of its entry: setting a time back does not hide a change."""

    @property
    def name(self) -> str:
        """The path as it is shown and reported: a file's name may hold bytes that are no text."""
        return shown_name(self.path)


@dataclass(frozen=True, slots=True)
class Document:
    """A document, or a part of one that is longer than PART_CHARACTERS."""

    text: str
    source: str
    """The file's path as the person named it."""
    index: int
    """Number of the document within its file."""
    last: bool = True
    """False when the next :class:`Document` of the stream goes on with the same document."""


@dataclass(slots=True)
class ReadLog:
    """What was read and what was not, and why."""

    encodings: Counter[str] = field(default_factory=Counter)
    """Bytes by encoding, and characters that could not be decoded under "undecodable"."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Files and records passed over, by reason."""
    samples: dict[str, list[str]] = field(default_factory=dict)
    """For each reason, the first few names."""
    notes: list[str] = field(default_factory=list)
    """Choices made for the person, such as which column of a csv file holds the text."""
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every file read to its end."""
    bytes_read: int = 0

    def skip(self, reason: str, name: str | os.PathLike[str]) -> None:
        """Count `name` as passed over for `reason`."""
        self.skipped[reason] += 1
        kept = self.samples.setdefault(reason, [])
        if len(kept) < _SAMPLES:
            kept.append(shown_name(name))

    def note(self, text: str) -> None:
        """Remember a choice, once."""
        if text not in self.notes and len(self.notes) < 100:
            self.notes.append(text)


def shown_name(path: str | os.PathLike[str]) -> str:
    """A path with escapes in place of bytes that are not UTF-8 and of characters that would upset a terminal."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def list_files(
    sources: Iterable[str | os.PathLike[str]], log: ReadLog | None = None, *, leave_out: Iterable[str | os.PathLike[str]] = ()
) -> list[SourceFile]:
    """Every file under `sources` that may hold text, each once, in a fixed order.

    Hidden files and folders are left alone; files whose ending says that they are not text, folders named in `leave_out`,
    and what a trainer wrote (see :mod:`owngpt.data.outputs`) go to the log.

    Raises:
        DataError: a source does not exist or may not be read, or there is no file at all.
    """
    log = log if log is not None else ReadLog()
    found: dict[str, SourceFile] = {}
    named = [Path(source) for source in sources]
    if not named:
        raise DataError("no source was given; name at least one file or folder of text")
    excluded = frozenset(os.path.realpath(folder) for folder in leave_out)
    for source in named:
        for path in _walk(source, excluded, log):
            if (file := _describe(path, log)) is not None:
                found.setdefault(os.path.realpath(path), file)
    if not found:
        raise DataError(_nothing_found(named, log))
    return list(found.values())


def documents(sources: Iterable[str | os.PathLike[str]] | Sequence[SourceFile], log: ReadLog | None = None) -> Iterator[Document]:
    """The documents of `sources` (paths, or files that :func:`list_files` gave), in order, in bounded memory.

    Files that vanished, may not be read, are damaged or are not text are named in `log` and passed over.

    Raises:
        DataError: a source does not exist, or there is no file at all.
    """
    log = log if log is not None else ReadLog()
    given = list(sources)
    files = [source for source in given if isinstance(source, SourceFile)]
    for file in files or list_files([source for source in given if not isinstance(source, SourceFile)], log):
        yield from _read(file, log)


def _walk(source: Path, excluded: frozenset[str], log: ReadLog) -> Iterator[Path]:
    try:
        is_folder = source.stat() and source.is_dir()
    except FileNotFoundError:
        raise DataError(f"{source} does not exist; name a file or folder of text") from None
    except OSError as error:
        raise DataError(f"{source} cannot be read ({error.strerror}); check its permissions") from error
    if not is_folder:
        yield source
        return

    def refused(error: OSError) -> None:
        log.skip("folder cannot be read", str(error.filename))

    for folder, children, names in os.walk(source, onerror=refused):
        if (reason := _why_not(folder, children, names, excluded)) is not None:
            log.skip(reason, folder)
            children.clear()
            continue
        children[:] = sorted(name for name in children if not name.startswith(".") and name not in _SKIPPED_FOLDERS)
        for name in outputs.tokenizer_files(names):
            log.skip("file of a tokenizer", os.path.join(folder, name))
            names.remove(name)
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _why_not(folder: str, children: list[str], names: list[str], excluded: frozenset[str]) -> str | None:
    """Why nothing in `folder` is training text; none if it may be."""
    if excluded and os.path.realpath(folder) in excluded:
        return "output folder of this run"
    return outputs.kind_of(Path(folder), children, names)


def _describe(path: Path, log: ReadLog) -> SourceFile | None:
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    ending = suffixes[-1] if suffixes else ""
    if ending == ".gz":
        ending = suffixes[-2] if len(suffixes) == 2 else ""
    if ending in _NOT_TEXT:
        log.skip("not a text file", path)
        return None
    try:
        status = path.stat()
    except OSError as error:
        log.skip("vanished" if isinstance(error, FileNotFoundError) else "cannot be read", path)
        return None
    if not path.is_file():
        log.skip("not a regular file", path)
        return None
    return SourceFile(path, _RECORD_SUFFIXES.get(ending, "text"), status.st_size, max(status.st_mtime_ns, status.st_ctime_ns))


def _nothing_found(sources: list[Path], log: ReadLog) -> str:
    names = ", ".join(map(shown_name, sources[:3])) + (" and more" if len(sources) > 3 else "")
    if log.skipped:
        reason, count = log.skipped.most_common(1)[0]
        example = log.samples[reason][0]
        return f"{names} holds no text: {count:,} passed over ({reason}: {example}); {remedy(reason)}"
    return f"{names} holds no files; put text (.txt, .md, code, .jsonl, .csv, .parquet) into it"


def remedy(reason: str) -> str:
    """What a person can do about the `reason` for which all was passed over."""
    if "cannot be read" in reason:
        return "check the permissions"
    if reason == "vanished":
        return "give files that stay where they are"
    if reason in outputs.KINDS:
        return "name the folder of the text itself"
    return "give text as .txt, .md, .jsonl, .csv or .parquet"


def _read(file: SourceFile, log: ReadLog) -> Iterator[Document]:
    name = file.name
    try:
        with open(file.path, "rb") as raw:
            hashed = _HashedFile(raw, log)
            if file.kind == "parquet":
                yield from _numbered(records.parquet(raw, name, log), name)
                log.hashes[name] = _hash_again(raw, log)
                return
            stream = cast("BinaryIO", io.BufferedReader(hashed, 2**18))
            if file.path.suffix.lower() == ".gz":
                stream = cast("BinaryIO", gzip.GzipFile(fileobj=stream))
            yield from _read_stream(stream, file.kind, name, log)
            log.hashes[name] = hashed.hexdigest()
    except FileNotFoundError:
        log.skip("vanished", name)
    except (gzip.BadGzipFile, zlib.error, EOFError):
        log.skip("damaged gzip file", name)
    except records.DamagedFileError as error:
        log.skip(str(error), name)
    except OSError as error:
        log.skip(f"cannot be read ({error.strerror or error})", name)


def _read_stream(stream: BinaryIO, kind: str, name: str, log: ReadLog) -> Iterator[Document]:
    head = _peek(stream)
    guess = encoding.sniff(head)
    if guess is None:
        log.skip("binary, not text", name)
        return
    blocks = encoding.decode_blocks(_skip(stream, guess[1]), guess[0], log.encodings)
    if kind == "text":
        yield from _whole_file(blocks, name)
    else:
        yield from _numbered(records.READERS[kind](blocks, name, log), name)


def _peek(stream: BinaryIO) -> bytes:
    return cast("io.BufferedReader", stream).peek(encoding.SNIFFED_BYTES)[: encoding.SNIFFED_BYTES]


def _skip(stream: BinaryIO, count: int) -> BinaryIO:
    stream.read(count)
    return stream


def _whole_file(blocks: Iterator[str], name: str) -> Iterator[Document]:
    """One document from the blocks of one file, in parts that end at a paragraph where there is one."""
    text = ""
    for block in blocks:
        text += block
        while len(text) > PART_CHARACTERS:
            cut = part_end(text, PART_CHARACTERS)
            yield Document(text[:cut], name, 0, last=False)
            text = text[cut:]
    yield Document(text, name, 0)


def _numbered(texts: Iterator[str], name: str) -> Iterator[Document]:
    for index, text in enumerate(texts):
        while len(text) > PART_CHARACTERS:
            cut = part_end(text, PART_CHARACTERS)
            yield Document(text[:cut], name, index, last=False)
            text = text[cut:]
        yield Document(text, name, index)


def part_end(text: str, limit: int) -> int:
    """The best place at or before `limit` (> 0) to cut `text`: after a blank line, a line, a sentence, a space, or there."""
    lowest = limit // 2
    for mark in ("\n\n", "\n", "。", ". ", " "):
        cut = text.rfind(mark, lowest, limit)
        if cut >= 0:
            return cut + len(mark)
    return limit


class _HashedFile(io.RawIOBase):
    """A raw file that hashes and counts what is read through it, strictly forwards."""

    def __init__(self, raw: BinaryIO, log: ReadLog) -> None:
        self._raw, self._log = raw, log
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = self._raw.readinto(buffer)  # type: ignore[attr-defined]
        self._hash.update(buffer[:count])
        self._log.bytes_read += count
        return int(count)

    def hexdigest(self) -> str:
        """SHA-256 of the whole file; what a reader left unread is read now."""
        while block := self._raw.read(2**20):
            self._hash.update(block)
        return self._hash.hexdigest()


def _hash_again(raw: BinaryIO, log: ReadLog) -> str:
    """SHA-256 of a file that was not read from its beginning to its end."""
    raw.seek(0)
    digest = hashlib.sha256()
    while block := raw.read(2**20):
        digest.update(block)
        log.bytes_read += len(block)
    return digest.hexdigest()
