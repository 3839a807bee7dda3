"""Rows of JSON text of any length: one a line, or the elements of one list, which is never held whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

from owngpt.finetune.examples.fault import BrokenFile, Fault

ROW_CHARACTERS = 4 * 2**20
"""A longer row is refused: about a million tokens, more than any context."""
TOO_LONG = (f"the row is longer than {ROW_CHARACTERS:,} characters", "cut it into several rows")
_OBJECT_CHARACTERS = 64 * 2**20
_PARTS_OF_ROWS = frozenset({"messages", "conversations", "conversation", "chosen", "rejected", "tools", "history", "prompt"})
"""Lists of objects under these names belong to one row."""
_DECODER = json.JSONDecoder(parse_constant=lambda name: None)  # NaN stands for a value that is not there


def json_rows(blocks: Iterator[str], *, by_line: bool) -> Iterator[tuple[int, Any]]:
    """Number and value of each row, or the :class:`Fault` in its place.

    JSON lines under a .json name and a list under a .jsonl name are common, so the first line is looked at.

    Args:
        blocks: the text, in pieces that end at a line's end where lines are short.
        by_line: the name says that each line is a row.
    """
    head = _first_text(blocks)
    first, _, rest = head.lstrip().partition("\n")
    blocks = chain([head], blocks)
    alone = _parses(first)
    if head.lstrip().startswith("[") and not (by_line and alone and rest.strip()):
        yield from _List(blocks).rows()
    elif by_line or (alone and rest.strip()):
        yield from _by_line(blocks)
    else:
        yield from _of_object(blocks)


def lines_of(blocks: Iterator[str]) -> Iterator[tuple[int, str | None]]:
    """Number and text of each line; None for one of more than ROW_CHARACTERS, which is not held."""
    held: list[str] = []
    size, number = 0, 0
    for block in blocks:
        *whole, last = block.split("\n")
        for line in whole:
            number += 1
            size += len(line)
            yield number, ("".join([*held, line]) if size <= ROW_CHARACTERS else None)
            held, size = [], 0
        size += len(last)
        if size > ROW_CHARACTERS:
            held = []
        elif last:
            held.append(last)
    if size:
        yield number + 1, ("".join(held) if size <= ROW_CHARACTERS else None)


def _first_text(blocks: Iterator[str]) -> str:
    """The first blocks, up to one that is not blank."""
    head = ""
    for block in blocks:
        head += block
        if head.strip() or len(head) > ROW_CHARACTERS:
            break
    return head


def _parses(line: str) -> bool:
    try:
        _DECODER.decode(line)
    except (ValueError, RecursionError):
        return False
    return True


def _by_line(blocks: Iterator[str]) -> Iterator[tuple[int, Any]]:
    for number, line in lines_of(blocks):
        if line is None:
            yield number, Fault(*TOO_LONG)
        elif line.strip():
            try:
                yield number, _DECODER.decode(line)
            except (ValueError, RecursionError) as error:
                yield number, _not_json(error, "mend the line")


def _not_json(error: Exception, fix: str, *, lines_before: int | None = None) -> Fault:
    if isinstance(error, json.JSONDecodeError):
        place = f"column {error.colno}"
        if lines_before is not None:
            place = f"line {lines_before + error.lineno:,}, {place}"
        return Fault(f"not valid JSON ({error.msg} at {place})", fix)
    return Fault("not valid JSON (nested too deeply)" if isinstance(error, RecursionError) else f"not valid JSON ({error})", fix)


def _of_object(blocks: Iterator[str]) -> Iterator[tuple[int, Any]]:
    """The rows of a file that holds one object: those of its longest list of objects, else the object itself."""
    parts, size = [], 0
    for block in blocks:
        parts.append(block)
        size += len(block)
        if size > _OBJECT_CHARACTERS:
            raise BrokenFile(f"one JSON object of more than {_OBJECT_CHARACTERS:,} characters", "give one row a line (.jsonl)")
    text = "".join(parts)
    if not text.strip():
        return
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip()[:1] == "{" and "\n" in text.strip() and any(map(_parses, text.strip().split("\n")[1:3])):
            yield from _by_line(iter([text]))  # JSON lines of which the first is broken
            return
        fault = _not_json(error, "mend the file", lines_before=0)
        raise BrokenFile(fault.reason, fault.fix) from None
    lists: list[list[Any]] = []
    if isinstance(value, dict):
        lists = [rows for name, rows in value.items() if _are_rows(name, rows)]
    rows = max(lists, key=len) if lists else [value]
    yield from enumerate(rows, 1)


def _are_rows(name: str, value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and name.lower() not in _PARTS_OF_ROWS


class _List:
    """A JSON list read element by element from blocks of text."""

    def __init__(self, blocks: Iterator[str]) -> None:
        self._blocks = blocks
        self._text, self._place = "", 0
        self._lines_before = 0
        self._ended = False

    def rows(self) -> Iterator[tuple[int, Any]]:
        """Number and value of each element; a :class:`BrokenFile` where the text is no JSON, for what follows is unsure."""
        self._next()
        self._place += 1  # the opening bracket
        number = 0
        while (mark := self._next()) != "]":
            if number:
                if mark != ",":
                    raise self._broken(number + 1, "a comma is missing" if mark else "the list is not closed")
                self._place += 1
            number += 1
            self._next()
            yield number, self._element(number)
        self._place += 1
        if self._next():
            raise self._broken(number + 1, "there is text behind the list")

    def _next(self) -> str:
        """The next character that is not blank, which is not taken; "" at the end."""
        while True:
            while self._place < len(self._text):
                if not (character := self._text[self._place]).isspace():
                    return character
                self._place += 1
            if not self._more():
                return ""

    def _element(self, number: int) -> Any:
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._place)
            except (ValueError, RecursionError) as error:
                if self._ended or len(self._text) - self._place > ROW_CHARACTERS:
                    raise self._broken(number, _not_json(error, "", lines_before=self._lines_before).reason) from None
                self._more()  # the element may only be cut off
                continue
            if self._ended or (end < len(self._text) and not (isinstance(value, int | float) and self._text[end] in "+-.eE")):
                long = end - self._place > ROW_CHARACTERS
                self._place = end
                return Fault(*TOO_LONG) if long else value
            self._more()  # a number may go on

    def _more(self) -> bool:
        """Read on, forgetting what was taken; whether there was more."""
        block = next(self._blocks, None)
        if block is None:
            self._ended = True
            return False
        self._lines_before += self._text.count("\n", 0, self._place)
        self._text, self._place = self._text[self._place :] + block, 0
        return True

    def _broken(self, number: int, reason: str) -> BrokenFile:
        line = self._lines_before + self._text.count("\n", 0, self._place) + 1
        where = "" if "line " in reason else f" (text line {line:,})"
        return BrokenFile(f"{reason}{where}", f"mend the file; nothing after row {max(number - 1, 0):,} can be read")
