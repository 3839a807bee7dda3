"""A rendered conversation as tokens, in which the ids of its beginnings are found without encoding these again."""

from __future__ import annotations

import bisect
from functools import lru_cache

from owngpt.text.conversation import ChatLayout, token_mask
from owngpt.text.tokenizer import Tokenizer

_LONGEST_KEPT = 100
"""Characters: what a template writes before every answer is encoded once."""


class EncodedText:
    """The tokens of a layout without marks.

    A tokenizer cuts a text at its added tokens before anything else, and encodes what lies between them piece by piece. So
    the ids of a beginning are those of the whole up to its last added token, and then those of the rest by itself.
    """

    def __init__(self, tokenizer: Tokenizer, layout: ChatLayout) -> None:
        assert not layout.has_marks
        encoding = tokenizer.backend.encode(layout.rendered, add_special_tokens=False)
        self.ids: list[int] = encoding.ids
        """Token ids."""
        self.mask = token_mask(encoding.char_to_token, layout.spans, len(encoding.ids)) if layout.spans else [0] * len(self.ids)
        """1 for tokens in ``{% generation %}`` blocks."""
        self._tokenizer, self._layout, self._encoding = tokenizer, layout, encoding
        added = _added_ids(tokenizer)
        self._cuts = [index for index, token_id in enumerate(self.ids) if token_id in added]
        offsets = encoding.offsets
        self._places = [offsets[index][0] for index in self._cuts]

    def length_of(self, beginning: str) -> int | None:
        """How many tokens a beginning of the text has by itself; None where these are not the first ones of the whole, or
        no added token shows it."""
        number = bisect.bisect_left(self._places, len(beginning)) - 1
        if number < 0:
            return None
        index, place = self._cuts[number], self._places[number]
        text = beginning[place:]
        rest = (_encoded if len(text) <= _LONGEST_KEPT else _encoded.__wrapped__)(self._tokenizer, text)
        return index + len(rest) if tuple(self.ids[index : index + len(rest)]) == rest else None

    def index_at(self, place: int) -> int | None:
        """Index of the token that begins at a character, one past the last at the end; None where a token stretches across."""
        if place == len(self._layout.rendered):
            return len(self.ids)
        index = self._encoding.char_to_token(place)
        return index if index is not None and self._encoding.offsets[index][0] == place else None


@lru_cache(maxsize=8)
def _added_ids(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(tokenizer.backend.get_added_tokens_decoder())


@lru_cache(maxsize=64)
def _encoded(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.backend.encode(text, add_special_tokens=False).ids)
