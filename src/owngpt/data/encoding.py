"""Bytes to text: UTF-8, UTF-8 with BOM, UTF-16, GB18030 and, as a last resort, Windows-1252; binary files are recognised.

The bulk is decoded as strict UTF-8 a block at a time, which costs next to nothing. Only a block that fails is looked at
line by line, so a file that mixes encodings (a log, a concatenation of downloads) still comes out right.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

SNIFFED_BYTES = 64 * 2**10
BLOCK_BYTES = 2**20
"""Most bytes decoded at once; a longer line is cut, so memory stays bounded whatever the file."""

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CONTROL = bytes(set(range(32)) - {7, 8, 9, 10, 11, 12, 13, 27})
_HIGH = re.compile(rb"[\x80-\xff]+")


def sniff(head: bytes) -> tuple[str, int] | None:
    """The encoding of a file that begins with `head` and the length of its byte-order mark; none if it is not text.

    "utf-8" stands for any ASCII-compatible text whose first bytes are strict UTF-8.
    """
    for bom, encoding in _BOMS:
        if head.startswith(bom):
            return encoding, len(bom)
    if not head:
        return "utf-8", 0
    if b"\x00" in head:
        return _utf16_without_bom(head)
    controls = len(head) - len(head.translate(None, _CONTROL))
    if controls > 0.02 * len(head):
        return None
    if _is_utf8(head):
        return "utf-8", 0
    return _eight_bit(head) or _mixed(head)


def decode_blocks(file: BinaryIO, encoding: str, counts: Counter[str]) -> Iterator[str]:
    """The rest of `file` as text, in pieces that end at a line's end wherever a line fits into BLOCK_BYTES.

    `counts` gains the bytes read under the name of each encoding met, and the characters that could not be decoded
    under "undecodable".
    """
    if encoding.startswith(("utf-16", "utf-32")):
        yield from _decode_wide(file, encoding, counts)
        return
    rest = b""
    while block := file.read(BLOCK_BYTES - len(rest)):
        block = rest + block
        cut = block.rfind(b"\n") + 1
        if cut == 0:
            if len(block) < BLOCK_BYTES:
                rest = block
                continue
            cut = _character_end(block)
        rest = block[cut:]
        yield _decode(block[:cut], encoding, counts)
    if rest:
        yield _decode(rest, encoding, counts)


def _decode(block: bytes, encoding: str, counts: Counter[str]) -> str:
    try:
        text = block.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(_decode_line(line, encoding, counts) for line in block.splitlines(keepends=True))
    counts["utf-8"] += len(block)
    return text


def _decode_line(line: bytes, encoding: str, counts: Counter[str]) -> str:
    fallback = encoding if encoding != "utf-8" else (_eight_bit(line) or ("utf-8", 0))[0]
    for candidate in ("utf-8", fallback):
        try:
            text = line.decode(candidate)
        except UnicodeDecodeError:
            continue
        counts[candidate] += len(line)
        return text
    text = line.decode(fallback, errors="replace")
    counts[fallback] += len(line)
    counts["undecodable"] += text.count("\ufffd")
    return text


def _decode_wide(file: BinaryIO, encoding: str, counts: Counter[str]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
    while block := file.read(BLOCK_BYTES):
        counts[encoding[:6]] += len(block)
        text = decoder.decode(block)
        counts["undecodable"] += text.count("\ufffd")
        yield text
    yield decoder.decode(b"", final=True)


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # not final: the head may end inside of a character
    except UnicodeDecodeError:
        return False
    return True


def _utf16_without_bom(head: bytes) -> tuple[str, int] | None:
    """Text that is largely ASCII has its zero bytes on one side of each pair; anything else with zeros is binary."""
    even, odd = head[0::2].count(0), head[1::2].count(0)
    pairs = max(len(head) // 2, 1)
    for encoding, zeros, others in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if zeros > 0.3 * pairs and others < 0.02 * pairs:
            text = head[: len(head) // 2 * 2].decode(encoding, errors="replace")
            if sum(character < " " and character not in "\t\r\n\f" for character in text) < 0.02 * len(text):
                return encoding, 0
    return None


def _eight_bit(head: bytes) -> tuple[str, int] | None:
    """GB18030 or Windows-1252 for text that is not UTF-8; none when it looks like neither.

    Both bytes of a common Chinese character are high, so high bytes come in even runs; in Western text an accented
    letter stands alone among ASCII letters.
    """
    runs = [len(run) for run in _HIGH.findall(head)]
    high = sum(runs)
    paired = sum(run for run in runs if run >= 2)
    if paired >= 0.7 * high:
        text = head.decode("gb18030", errors="replace")
        if text.count("\ufffd") <= 2 + 0.01 * len(text):
            return "gb18030", 0
    if high <= 0.35 * len(head):
        return "cp1252", 0
    return None


def _mixed(head: bytes) -> tuple[str, int] | None:
    """UTF-8, to be told apart from others line by line, when nearly every line by itself is text in some encoding."""
    lines = head.splitlines()[:-1]
    readable = sum(len(line) for line in lines if _is_utf8(line) or _eight_bit(line))
    return ("utf-8", 0) if lines and readable >= 0.95 * sum(map(len, lines)) else None


def _character_end(block: bytes) -> int:
    """Where to cut a block without a line's end so that no character is split (UTF-8 or GB18030)."""
    for encoding in ("utf-8", "gb18030"):
        for back in range(4):
            try:
                block[: len(block) - back].decode(encoding)
            except UnicodeDecodeError:
                continue
            return len(block) - back
    return len(block)
