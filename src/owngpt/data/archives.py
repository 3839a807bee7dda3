"""Text files out of the archives of named corpora. Members are read one by one and never unpacked by their own paths."""

from __future__ import annotations

import ast
import json
import re
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from owngpt.errors import DataError

_MEMBER_BYTES = 256 * 2**20
_STDLIB_LIMIT = 10_000_000
_SKIPPED = """
__pycache__ site-packages dist-packages test tests idle_test idlelib lib2to3 encodings ensurepip pydoc_data turtledemo
_distutils_hack config
"""
_STDLIB_SKIPPED = frozenset(_SKIPPED.split())


def members(archive: Path, pattern: str) -> Iterator[tuple[re.Match[str], bytes]]:
    """Name and content of every regular file in a tar or zip archive whose name contains `pattern`."""
    wanted = re.compile(pattern)
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                if match := wanted.search(info.filename):
                    yield match, _checked(info.filename, info.file_size) or opened.read(info)
        return
    with tarfile.open(archive) as packed:
        for member in packed:
            if member.isreg() and (match := wanted.search(member.name)):
                content = packed.extractfile(member)
                assert content is not None
                yield match, _checked(member.name, member.size) or content.read()


def text_files(archive: Path, folder: Path, *, pattern: str) -> None:
    """Text files as they are, named by the group `name` of `pattern`."""
    for match, content in members(archive, pattern):
        _write(folder / f"{match['name']}.txt", content.decode("utf-8-sig"))


def poems(archive: Path, folder: Path, *, pattern: str) -> None:
    """Poems of JSON lists with `title` (or `rhythmic`), `author` and `paragraphs`: one jsonl, one poem a document."""
    texts = []
    for match, content in sorted(members(archive, pattern), key=lambda found: found[0].string):
        for poem in _parsed(match.string, content):
            title = poem.get("title") or poem.get("rhythmic") or ""
            lines = [line for line in (title, poem.get("author", ""), "", *poem.get("paragraphs", [])) if isinstance(line, str)]
            if any(line.strip() for line in poem.get("paragraphs", [])):
                texts.append("\n".join(lines).strip() + "\n")
    _write_jsonl(folder / "poems.jsonl", texts)


def chapters(archive: Path, folder: Path, *, member: str) -> None:
    """A JSON list of chapters: one text file each, with the indentation of its lines taken away."""
    for match, content in members(archive, re.escape(member) + "$"):
        for number, chapter in enumerate(_parsed(match.string, content), 1):
            lines = [line.strip() for line in str(chapter).splitlines()]
            _write(folder / f"chapter-{number:03d}.txt", re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n")


def package_descriptions(lists: Path, folder: Path) -> None:
    """The paragraphs of apt's Translation files: one jsonl, one package a document, equal descriptions once."""
    texts: dict[str, str] = {}
    for path in sorted(lists.glob("*_i18n_Translation-en")):
        with open(path, encoding="utf-8", errors="replace") as file:
            for name, description in _descriptions(file):
                texts.setdefault(description, f"{name}: {description}")
    if texts:
        _write_jsonl(folder / "packages.jsonl", texts.values())


def python_stdlib(work: Path, folder: Path) -> None:
    """The modules of the running Python's standard library, without tests and tables, and the language reference."""
    root = Path(sysconfig.get_paths()["stdlib"])
    taken = 0
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _STDLIB_SKIPPED.intersection(relative.parts) or any(part.startswith("config-") for part in relative.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if not text.strip() or taken + len(text) > _STDLIB_LIMIT:
            continue
        taken += len(text)
        _write(folder / "-".join(relative.parts), text)
    for name, text in _language_reference(root):
        _write(folder / f"reference-{re.sub(r'[^a-z0-9]+', '-', name.lower())}.txt", text)
    if taken == 0:
        raise DataError(f"this Python ({sys.version.split()[0]}) carries no sources in {root}; name a folder of text instead")


def _language_reference(root: Path) -> Iterator[tuple[str, str]]:
    """The topics of `pydoc_data/topics.py`, read as the literal that it is, without running it."""
    try:
        tree = ast.parse((root / "pydoc_data" / "topics.py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            topics = ast.literal_eval(statement.value)
            yield from ((name, text) for name, text in sorted(topics.items()) if isinstance(text, str) and text.strip())


def _descriptions(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    name, short, body = "", "", list[str]()
    for line in (*lines, "\n"):
        if line.startswith("Package: "):
            name = line[9:].strip()
        elif line.startswith("Description-en: "):
            short = line[16:].strip()
        elif line.startswith(" ") and short:
            body.append(line[1:].rstrip() if line.strip() != "." else "")
        elif not line.strip() and name:
            yield name, "\n".join([short, "", *body]).strip() + "\n"
            name, short, body = "", "", []


def _checked(name: str, size: int) -> bytes | None:
    if size > _MEMBER_BYTES:
        raise DataError(f"{name} in the archive has {size} bytes, more than the limit of {_MEMBER_BYTES}; report this")
    return None


def _parsed(name: str, content: bytes) -> list[Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise DataError(f"{name} in the archive is not JSON ({error}); report this") from error
    return value if isinstance(value, list) else []


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="")


def _write_jsonl(path: Path, texts: Iterable[str]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
