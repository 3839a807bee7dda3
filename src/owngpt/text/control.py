"""Control tokens in what people and tools say: in a conversation only the template may write them.

A model takes "<|im_end|>" for the end of a turn whoever wrote it. So the contents are marked before the template runs:
where they hold the text of a control token, or an end of one that a neighbour could complete. The marks are code points
that no text has; filters such as ``trim`` treat them like any other letter. After rendering, a control token that touches
a mark is text, and all others are the template's.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import Any

import tokenizers

from owngpt.errors import UsageError
from owngpt.text.chat import SPECIAL_NAMES
from owngpt.text.tokenizer import Tokenizer

OPEN, CLOSE, EDGE, ALIAS = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd4"
"""Unicode noncharacters, reserved for a program's own use; a text that holds one is not text."""
_MARK = re.compile(rf"[{OPEN}{CLOSE}{EDGE}]|\\ufdd[0-2]")
"""A mark; also as Python and JSON write it where a template writes out a list."""
_FOREIGN = re.compile("[\ufdd0-\ufdd4]")
_NOT_CONTENT = frozenset({*SPECIAL_NAMES, "add_generation_prompt", "messages"})


@dataclass(frozen=True)
class Marks:
    """Where, in characters of the text without them, the contents' marks stood."""

    opens: tuple[int, ...]
    closes: tuple[int, ...]
    edges: tuple[int, ...]
    places: tuple[int, ...]
    """Where all of them stood in the rendering itself."""
    lengths: tuple[int, ...]
    """How many characters of the rendering the marks up to each one take, from none on."""

    def touch(self, start: int, stop: int) -> bool:
        """Whether a token at [start, stop) came, in whole or in part, from the contents."""
        return (
            _any_within(self.opens, start, stop - 1)
            or _any_within(self.closes, start + 1, stop)
            or _any_within(self.edges, start + 1, stop - 1)
        )


@dataclass(frozen=True)
class Guarded:
    """A rendering as tokens."""

    text: str
    token_ids: list[int]
    _encoding: tokenizers.Encoding
    _marks: Marks
    _places: tuple[int, ...] | None
    """For each character of the text, and one past it, its place in what was encoded; None where that was the text."""

    def token_at(self, place: int) -> int | None:
        """Index of the token that holds a character of the rendering, marks and all, if one does."""
        place -= self._marks.lengths[bisect.bisect_left(self._marks.places, place)]
        return self._encoding.char_to_token(place if self._places is None else self._places[place])


def _any_within(places: tuple[int, ...], low: int, high: int) -> bool:
    index = bisect.bisect_left(places, low)
    return index < len(places) and places[index] <= high


class ContentGuard:
    """Marks control tokens in contents, and encodes a rendering so that the marked ones are text."""

    @staticmethod
    @lru_cache(maxsize=8)
    def of(tokenizer: Tokenizer, source: str) -> ContentGuard:
        """The guard of a tokenizer and a template, kept for the next conversation."""
        return ContentGuard(tokenizer, source)

    def __init__(self, tokenizer: Tokenizer, source: str) -> None:
        """:param source: the template; tokens such as "<tool_response>" that it writes are control tokens too."""
        self._tokenizer = tokenizer
        added = tokenizer.backend.get_added_tokens_decoder()
        self._ids = frozenset(added)
        special = {token.content for token in added.values() if token.special}
        written = {token.content for token in added.values() if token.content in source and token.content.strip()}
        self._special, self._control = _Names(special), _Names(special | written)

    def marked(self, values: dict[str, Any]) -> dict[str, Any]:
        """The template's values with marks.

        The assistant's own words keep tokens that are not special: its thoughts stand between "<think>" and "</think>".
        """
        marked = {name: value if name in _NOT_CONTENT else self._control.mark(value) for name, value in values.items()}
        return {**marked, "messages": [self._marked_message(message) for message in values["messages"]]}

    def _marked_message(self, message: dict[str, Any]) -> dict[str, Any]:
        names = self._special if message.get("role") == "assistant" else self._control
        marked: dict[str, Any] = names.mark(message)
        return marked

    def encode(self, rendered: str, *, has_marks: bool = True) -> Guarded:
        """Encode what the template made of marked values.

        :param has_marks: whether there were any; without, a text that spells one out is only text.
        """
        text, marks = _unmarked(rendered) if has_marks else (rendered, Marks((), (), (), (), (0,)))
        encoding = self._tokenizer.backend.encode(text, add_special_tokens=False)
        tokens = [(token_id, *place) for token_id, place in zip(encoding.ids, encoding.offsets, strict=True)]
        control = [token for token in tokens if token[0] in self._ids]
        if not any(marks.touch(start, stop) for _, start, stop in control):
            return Guarded(text, encoding.ids, encoding, marks, None)
        kept = [token for token in control if not marks.touch(token[1], token[2])]
        aliased, places = _aliased(text, kept)
        backend, first = _alias_backend(self._tokenizer)
        encoding = backend.encode(aliased, add_special_tokens=False)
        return Guarded(text, [self._original(token_id, first) for token_id in encoding.ids], encoding, marks, places)

    def _original(self, token_id: int, first: int) -> int:
        """The id that an alias stands for."""
        if token_id >= first:
            return self._added_ids[token_id - first]
        if token_id in self._tokenizer.special_id_set:
            name = self._tokenizer.token(token_id)
            raise UsageError(f"a message holds {name!r}, which this tokenizer cannot spell as text; take it out")
        return token_id

    @cached_property
    def _added_ids(self) -> list[int]:
        return sorted(self._ids)


class _Names:
    """The control tokens to look for."""

    def __init__(self, names: Iterable[str]) -> None:
        ordered = sorted(filter(None, names), key=len, reverse=True)
        # Also in another case: a template, or the tokenizer's normalizer, may change it. A mark too many changes no id.
        self._whole = re.compile("|".join(map(re.escape, ordered)) or "(?!)", re.IGNORECASE)
        self._heads = _fragments(name[:length] for name in ordered for length in range(1, len(name)))
        self._tails = _fragments(name[length:] for name in ordered for length in range(1, len(name)))
        self._longest = max(map(len, ordered), default=0)

    def mark(self, value: Any) -> Any:
        """The value with every string in it marked."""
        if isinstance(value, str):
            return self._mark_text(value)
        if isinstance(value, dict):
            return {self._mark_key(key): self.mark(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.mark(item) for item in value)
        return value

    def _mark_key(self, key: Any) -> Any:
        return self._whole.sub(f"{OPEN}\\g<0>{CLOSE}", _FOREIGN.sub("\ufffd", key)) if isinstance(key, str) else key

    def _mark_text(self, text: str) -> str:
        marked: str = self._mark_key(text)
        lengths = range(1, min(len(text), self._longest) + 1)
        before = EDGE if any(text[:length] in self._tails for length in lengths) else ""
        after = EDGE if any(text[-length:] in self._heads for length in lengths) else ""
        return before + marked + after


def _fragments(parts: Iterable[str]) -> frozenset[str]:
    """Parts of control tokens by which a text would look like one; a plain word or a blank does not."""
    return frozenset(part for part in parts if not part.isalnum() and not part.isspace())


def _unmarked(rendered: str) -> tuple[str, Marks]:
    """The text without marks, and where they stood."""
    found = list(_MARK.finditer(rendered))
    lengths = (0, *accumulate(len(mark[0]) for mark in found))
    places: dict[str, list[int]] = {OPEN: [], CLOSE: [], EDGE: []}
    for mark, before in zip(found, lengths, strict=False):
        places[mark[0] if len(mark[0]) == 1 else chr(int(mark[0][2:], 16))].append(mark.start() - before)
    opens, closes, edges = (tuple(places[kind]) for kind in (OPEN, CLOSE, EDGE))
    return _MARK.sub("", rendered), Marks(opens, closes, edges, tuple(mark.start() for mark in found), lengths)


def _aliased(text: str, tokens: list[tuple[int, int, int]]) -> tuple[str, tuple[int, ...]]:
    """The text with an alias in the place of each token, and where each of its characters went."""
    pieces: list[str] = []
    places: list[int] = []
    length = 0
    borders = [0, *(border for _, start, stop in tokens for border in (start, stop)), len(text)]
    for index, (start, stop) in enumerate(pairwise(borders)):
        piece = _alias(tokens[index // 2][0]) if index % 2 else text[start:stop]
        places.extend([length] * (stop - start) if index % 2 else range(length, length + stop - start))
        pieces.append(piece)
        length += len(piece)
    return "".join(pieces), (*places, length)


def _alias(token_id: int) -> str:
    return f"{ALIAS}{token_id}{ALIAS}"


@lru_cache(maxsize=4)
def _alias_backend(tokenizer: Tokenizer) -> tuple[tokenizers.Tokenizer, int]:
    """The tokenizer with its added tokens turned into plain text, each under an alias; and the first alias's id."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    added = sorted(backend.get_added_tokens_decoder().items())
    backend.encode_special_tokens = True
    # Made special, so that the setting above hides them all: whether a tokenizer calls "<think>" special is its own choice.
    backend.add_special_tokens([_special_copy(token) for _, token in added])
    first = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    backend.add_tokens([tokenizers.AddedToken(_alias(index), normalized=False) for index, _ in added])
    return backend, first


def _special_copy(token: tokenizers.AddedToken) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(
        token.content, single_word=token.single_word, lstrip=token.lstrip, rstrip=token.rstrip, normalized=token.normalized,
        special=True,
    )  # fmt: skip
