"""How well a tokenizer fits a text: what a token holds, by language; which tokens idle; how much falls back to bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy

from owngpt.errors import DataError
from owngpt.text.language import detect_language
from owngpt.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rich.console import RenderableType

BATCH_TEXTS = 64
UNUSED_SHOWN = 20


@dataclass(frozen=True)
class LanguageFit:
    """The fit to the texts of one language."""

    language: str
    documents: int
    bytes: int
    characters: int
    tokens: int
    fallback_tokens: int
    """Tokens that are a part of a character, since no token holds the whole of it."""

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes that a token holds; more is better, within one language."""
        return self.bytes / max(self.tokens, 1)

    @property
    def characters_per_token(self) -> float:
        """Characters that a token holds."""
        return self.characters / max(self.tokens, 1)

    @property
    def fallback_share(self) -> float:
        """Share of the tokens that are a part of a character."""
        return self.fallback_tokens / max(self.tokens, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        shares = ("bytes_per_token", "characters_per_token", "fallback_share")
        return {**asdict(self), **{name: round(getattr(self, name), 6) for name in shares}}


@dataclass(frozen=True)
class TokenizerReport:
    """The fit of a tokenizer to some texts."""

    kind: str
    vocab_size: int
    languages: tuple[LanguageFit, ...]
    """Largest first."""
    total: LanguageFit
    unused_tokens: int
    """Tokens, special ones apart, that the texts never needed."""
    unused_examples: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            "unused_tokens": self.unused_tokens,
            "unused_examples": list(self.unused_examples),
            "total": self.total.to_dict(),
            "languages": [fit.to_dict() for fit in self.languages],
        }

    def __rich__(self) -> RenderableType:
        """A table for the terminal."""
        from rich.table import Table

        idle = f"{self.unused_tokens:,} of {self.vocab_size:,} tokens unused here"
        table = Table(title=f"Tokenizer ({self.kind}, {self.vocab_size:,} tokens)", caption=idle)
        for name in ("language", "documents", "bytes", "tokens", "bytes/token", "characters/token", "byte fallback"):
            table.add_column(name, justify="left" if name == "language" else "right")
        for fit in (*self.languages, self.total) if len(self.languages) > 1 else self.languages:
            table.add_row(
                fit.language, f"{fit.documents:,}", f"{fit.bytes:,}", f"{fit.tokens:,}", f"{fit.bytes_per_token:.3f}",
                f"{fit.characters_per_token:.3f}", f"{fit.fallback_share:.2%}",
            )  # fmt: skip
        return table


class _Counter:
    """Running sums of one language."""

    def __init__(self) -> None:
        self.documents = self.bytes = self.characters = self.tokens = self.fallback = 0

    def add(self, text: str, ids: numpy.ndarray, fallback: numpy.ndarray) -> None:
        self.documents += 1
        self.bytes += len(text.encode("utf-8"))
        self.characters += len(text)
        self.tokens += len(ids)
        self.fallback += int(fallback[ids].sum())

    def fit(self, language: str) -> LanguageFit:
        return LanguageFit(language, self.documents, self.bytes, self.characters, self.tokens, self.fallback)


def tokenizer_report(tokenizer: Tokenizer, texts: Iterable[str] | Mapping[str, Iterable[str]]) -> TokenizerReport:
    """Judge a tokenizer on texts.

    :param texts: documents, whose language is detected, or documents by language. Read once, a few at a time.
    :raises DataError: there is no text.
    """
    uses = numpy.zeros(tokenizer.vocab_size, dtype=numpy.int64)
    fallback = _partial_characters(tokenizer)
    counters: dict[str, _Counter] = {}
    total = _Counter()
    labelled = _labelled(texts)
    while batch := list(islice(labelled, BATCH_TEXTS)):
        for (language, text), encoded in zip(batch, tokenizer.encode_batch([text for _, text in batch]), strict=True):
            ids = numpy.asarray(encoded, dtype=numpy.int64)
            uses += numpy.bincount(ids, minlength=len(uses))
            counters.setdefault(language, _Counter()).add(text, ids, fallback)
            total.add(text, ids, fallback)
    if not total.characters:
        raise DataError("there is no text to judge the tokenizer on; give a file or folder that holds some")
    fits = sorted((counter.fit(language) for language, counter in counters.items()), key=lambda fit: -fit.bytes)
    known = set(tokenizer.vocabulary.values()) - tokenizer.special_id_set
    unused = [int(index) for index in numpy.flatnonzero(uses == 0) if index in known]
    examples = tuple(_shown(tokenizer, index) for index in unused[-UNUSED_SHOWN:])
    return TokenizerReport(tokenizer.kind, tokenizer.vocab_size, tuple(fits), total.fit("total"), len(unused), examples)


def _labelled(texts: Iterable[str] | Mapping[str, Iterable[str]]) -> Iterator[tuple[str, str]]:
    if isinstance(texts, Mapping):
        for language, documents in texts.items():
            for text in documents:
                yield language, text
        return
    for text in texts:
        yield detect_language(text), text


def _partial_characters(tokenizer: Tokenizer) -> numpy.ndarray:
    """For each id, whether its bytes are not whole characters: (V,) bool."""
    partial = numpy.zeros(tokenizer.vocab_size, dtype=bool)
    for index in set(tokenizer.vocabulary.values()) - tokenizer.special_id_set:
        try:
            tokenizer.token_bytes(index).decode("utf-8")
        except UnicodeDecodeError:
            partial[index] = True
    if tokenizer.kind == "char":  # an ASCII character that has no token of its own is a byte too
        for byte in range(128):
            partial[tokenizer.vocabulary[f"<0x{byte:02X}>"]] = True
    return partial


def _shown(tokenizer: Tokenizer, index: int) -> str:
    return tokenizer.token_bytes(index).decode("utf-8", errors="replace")
