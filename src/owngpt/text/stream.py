"""Incremental decoding: token ids in, whole characters out, so that a streamed text never shows a broken one."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

REPLACEMENT = "\ufffd"
LONGEST_WAIT = 16
"""Tokens a text decoder may hold back; a character of four bytes needs at most four."""


class StreamDecoder(Protocol):
    """Turns ids into text one at a time; the pieces joined are the decoding of all ids."""

    def push(self, token_id: int) -> str:
        """Whole characters that this token completes, or ""."""
        ...

    def finish(self, whole: bool = False) -> str:
        """What is still held back. The decoder starts afresh.

        :param whole: leave an incomplete character at the end out, instead of showing it as U+FFFD.
        """
        ...


@lru_cache(maxsize=1)
def byte_of_symbol() -> dict[str, int]:
    """The printable character that stands for each of the 256 bytes in a byte-level vocabulary (GPT-2, section 2.2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unprintable = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + index): byte for index, byte in enumerate(unprintable)})
    return table


@lru_cache(maxsize=1 << 16)
def byte_level_bytes(token: str) -> bytes:
    """Bytes of a token of a byte-level vocabulary; an added token that is plain text stands for itself."""
    table = byte_of_symbol()
    if all(character in table for character in token):
        return bytes(table[character] for character in token)
    return token.encode("utf-8")


def sentence_piece_bytes(token: str) -> bytes:
    """Like :func:`byte_fallback_bytes`, where "▁" stands for a blank."""
    return byte_fallback_bytes(token.replace("▁", " "))


def byte_fallback_bytes(token: str) -> bytes:
    """Bytes of a token of a vocabulary of characters in which "<0x0A>" is a single byte."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass  # "<0xZZ>" is plain text
    return token.encode("utf-8")


class BytesDecoder:
    """Exact and constant time a token: for vocabularies in which each token is a fixed string of bytes."""

    def __init__(self, bytes_of: Callable[[int], bytes], *, drops_first_blank: bool = False) -> None:
        """:param drops_first_blank: a blank that begins the text is not part of it: encoding put it there."""
        self._bytes_of = bytes_of
        self._drops_first_blank = drops_first_blank
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._began = False

    def push(self, token_id: int) -> str:
        """See :class:`StreamDecoder`."""
        return self._shown(self._utf8.decode(self._bytes_of(token_id)))

    def finish(self, whole: bool = False) -> str:
        """See :class:`StreamDecoder`."""
        rest = "" if whole else self._shown(self._utf8.decode(b"", final=True))
        self._utf8.reset()
        self._began = False
        return rest

    def _shown(self, piece: str) -> str:
        first = bool(piece) and not self._began
        self._began = self._began or first
        return piece.removeprefix(" ") if first and self._drops_first_blank else piece


class WindowDecoder:
    """For any other vocabulary: decodes a short window again and hands out what grew.

    A token's text may depend on its left neighbour (a leading space that is dropped at the start of a text, say), so
    the window keeps the tokens of the previous piece as context.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """See :class:`StreamDecoder`."""
        self._pending.append(token_id)
        piece = self._grown()
        if not piece or (piece.endswith(REPLACEMENT) and len(self._pending) < LONGEST_WAIT):
            return ""
        return self._hand_out(piece)

    def finish(self, whole: bool = False) -> str:
        """See :class:`StreamDecoder`."""
        piece = self._grown() if self._pending else ""
        self._context, self._pending = [], []
        return piece.rstrip(REPLACEMENT) if whole else piece

    def _grown(self) -> str:
        before = self._decode(self._context)
        return self._decode(self._context + self._pending)[len(before) :]

    def _hand_out(self, piece: str) -> str:
        self._context, self._pending = self._pending, []
        return piece
