"""Passages of text that occur more than once: what would let a model be scored on text that it was trained on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

_BLOCK = re.compile(rb"\S[^\n]*(?:\n[ \t]*[^\s][^\n]*)*")
_LINE = re.compile(rb"[^\n]+")
_SPACE = b" \t\r\n\x0b\x0c"
_PARAGRAPH_BYTES = 128
_LINE_BYTES = 64
_LONG_BLOCK_BYTES = 2048


def passages(text: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Start, stop and space-free content of every passage long enough that meeting it twice is no accident.

    A passage is a paragraph of 128 bytes and more, however its lines are wrapped; in text of one paragraph a line, or in
    a long run of lines, it is a line of 64 bytes and more.
    """
    for match in _BLOCK.finditer(text):
        start, stop = match.span()
        if stop - start < _PARAGRAPH_BYTES:
            continue
        lines = 1 + text.count(b"\n", start, stop)
        if lines == 1 or (stop - start <= _LONG_BLOCK_BYTES and stop - start < _PARAGRAPH_BYTES * lines):
            yield start, stop, text[start:stop].translate(None, _SPACE)
            continue
        for line in _LINE.finditer(text, start, stop):
            if line.end() - line.start() >= _LINE_BYTES:
                yield line.start(), line.end(), line.group().translate(None, _SPACE)


def count_in(wanted: set[bytes], windows: Iterable[bytes]) -> Counter[bytes]:
    """How often each wanted passage occurs in the windows of a text."""
    found: Counter[bytes] = Counter()
    for window in windows:
        for _, _, content in passages(window):
            if content in wanted:
                found[content] += 1
    return found
