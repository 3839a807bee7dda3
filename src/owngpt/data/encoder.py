"""Encoding in bulk: each different word is encoded once, and the text is put together from the words' tokens.

Byte-pair encoding works on one word at a time, words being what the pre-tokenizer's pattern cuts a text into, and a
corpus has few different words: this is several times faster than encoding the text. It is used where it is exact:
for a tokenizer with our own pattern, on text whose characters mean the same to this pattern here and there (checked
on a few difficult texts). Everything else, Chinese most of all, whose "words" are whole phrases, goes to the tokenizer as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np

_WORD = re.compile(
    r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|(?:[^\w\r\n]|_)?[^\W\d_]+|\d| ?(?:[^\w\s]|_)+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""`owngpt.text.special.SPLIT_PATTERN` in the words of `re`, for the characters that _PLAIN allows."""
_ASCII_WORD = re.compile(
    r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    re.ASCII,
)
"""The same for ASCII, twice as fast."""
_PLAIN = re.compile(
    "[\t\n\x20-\x7e\xa1-\xb1\xb4-\xb8\xba\xbb\xbf-\u017e\u0180-\u024f\u0391-\u03a1\u03a3-\u03c9\u0410-\u044f\u2010-\u2027"
    "\u2030-\u205e\u20ac\u2122\u2190-\u21ff\u2500-\u25ff]*"
)
_CACHED_WORDS = 400_000
_PROBES = (
    "it's IT'LL we'Re I'm 'tis don't 1234567 a1b2 3rd\n",
    "x  y   z\n\n  z \n\tq\n \n",
    '(a)_b__c ...\n\n! #!@ a.b(c), "d" -- e\n',
    "é'sé “q” — naïve… ß Ж μ €5\n",
    "\t\tif x == 1:\n\t\t    y  # z\n",
)


class TextEncoder(Protocol):
    """What is needed of a tokenizer; :class:`owngpt.text.tokenizer.Tokenizer` is one."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def end_of_text_id(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...


class Encoded(NamedTuple):
    """The tokens of some texts, one text after the other."""

    ids: np.ndarray
    """(N,) uint32."""
    counts: np.ndarray
    """(texts,) int64: tokens of each text."""


class BulkEncoder:
    """Encodes many texts with `tokenizer`, to the same tokens as its own `encode_batch`."""

    def __init__(self, tokenizer: TextEncoder) -> None:
        self._tokenizer = tokenizer
        self._words: dict[str, list[int]] = {}
        self._by_words: bool | None = None

    def encode(self, texts: Sequence[str]) -> Encoded:
        """The tokens of the texts; special tokens in the texts are only text."""
        lists = self.encode_batch(texts)
        counts = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
        return Encoded(np.fromiter(chain.from_iterable(lists), dtype=np.uint32, count=int(counts.sum())), counts)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        if self._by_words is None:
            self._by_words = self._has_our_pattern()
        if not self._by_words:
            return self._encode(texts)
        split = [_words(text) for text in texts]
        others = iter(self._encode([text for text, words in zip(texts, split, strict=True) if words is None]))
        self._learn(split)
        look_up = self._words.__getitem__
        return [next(others) if words is None else list(chain.from_iterable(map(look_up, words))) for words in split]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer.encode_batch(texts) if texts else []

    def _learn(self, split: Sequence[list[str] | None]) -> None:
        if len(self._words) > _CACHED_WORDS:
            self._words.clear()
        new = sorted(set().union(*(words for words in split if words is not None)).difference(self._words))
        self._words.update(zip(new, self._encode(new), strict=True))

    def _has_our_pattern(self) -> bool:
        """Whether texts in which patterns differ come out the same from their words and as a whole."""
        for text in _PROBES:
            words = _words(text)
            if words is None or list(chain.from_iterable(self._encode(words))) != self._encode([text])[0]:
                return False
        return True


def _words(text: str) -> list[str] | None:
    """The words of a text, or none when it holds characters on whose class two regular expression engines may differ."""
    if text.isascii():
        return _ASCII_WORD.findall(text)
    return _WORD.findall(text) if _PLAIN.fullmatch(text) else None
