"""Whole characters: which tokens may follow where the bytes of a character have begun.

A vocabulary of bytes, or of pieces of bytes, can spell what is no UTF-8 (RFC 3629): a byte that continues nothing, or a character
that breaks off. A text that is chosen token by token stays valid if each token is one that goes on from where the bytes are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

WHOLE, REFUSED = 0, -1
"""Between two characters; and what no character is."""
_LATER = range(0x80, 0xC0)
# State → (bytes, the state after them). Narrower ranges keep out overlong spellings, surrogates and what is above U+10FFFF.
_STEPS: dict[int, list[tuple[range, int]]] = {
    WHOLE: [
        (range(0x80), WHOLE), (range(0xC2, 0xE0), 1), (range(0xE0, 0xE1), 4), (range(0xE1, 0xED), 2), (range(0xED, 0xEE), 5),
        (range(0xEE, 0xF0), 2), (range(0xF0, 0xF1), 6), (range(0xF1, 0xF4), 3), (range(0xF4, 0xF5), 7),
    ],
    1: [(_LATER, WHOLE)], 2: [(_LATER, 1)], 3: [(_LATER, 2)],
    4: [(range(0xA0, 0xC0), 1)], 5: [(range(0x80, 0xA0), 1)], 6: [(range(0x90, 0xC0), 2)], 7: [(range(0x80, 0x90), 2)],
}  # fmt: skip
STATES = len(_STEPS)
_NEXT = {(state, byte): after for state, steps in _STEPS.items() for run, after in steps for byte in run}
LONGEST = 4
"""Bytes of a character."""
BLANKS = "Ġ▁"
"""How vocabularies spell the blank before a word."""


def state_after(data: bytes, state: int = WHOLE) -> int:
    """Where bytes lead: :data:`WHOLE`, within a character, or :data:`REFUSED`."""
    for byte in data:
        state = _NEXT.get((state, byte), REFUSED)
        if state == REFUSED:
            return REFUSED
    return state


class WholeCharacters:
    """What may follow in texts of one vocabulary. Costs next to nothing where a text is in whole tokens, as most are."""

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        spelling: Callable[[int], str | None],
        bytes_of: Callable[[str], bytes],
        special_ids: frozenset[int],
    ) -> None:
        """
        :param vocabulary: tokens as they are spelled, and their ids.
        :param spelling: the same the other way round.
        :param bytes_of: what a spelling stands for.
        :param special_ids: of tokens that stand for no text.
        """
        self._vocabulary, self._spelling, self._bytes_of, self._special_ids = vocabulary, spelling, bytes_of, special_ids
        self._seen: dict[int, bytes | None] = {}

    def allows(self, token_ids: Sequence[int], start: int, token_id: int) -> bool:
        """Whether the text stays valid with this token.

        :param token_ids: the text so far; what was written begins at ``start``.
        """
        state = self.state(token_ids, start)
        if state == WHOLE and self._piece(token_id) is None:
            return True
        return not self.forbidden[state][token_id]

    def state(self, token_ids: Sequence[int], start: int) -> int:
        """Where a text is: the last bytes tell, as the text is valid so far."""
        tail = b""
        place = len(token_ids)
        while place > start and len(tail) < LONGEST:
            place -= 1
            piece = self._piece(token_ids[place])
            if piece is None:
                break
            tail = piece + tail
        leads = [at for at, byte in enumerate(tail) if byte >= 0xC0]
        return max(state_after(tail[leads[-1] :]), WHOLE) if leads else WHOLE

    @cached_property
    def forbidden(self) -> NDArray[np.bool_]:
        """(states, V): which tokens would break the text. A character is not begun that no token can complete."""
        after = np.full((STATES, max(self._vocabulary.values(), default=-1) + 1), REFUSED, dtype=np.int8)
        after[WHOLE] = WHOLE
        for token_id in self._vocabulary.values():
            data = self._piece(token_id)
            if data is not None:
                after[:, token_id] = [state_after(data, state) for state in range(STATES)]
        ends = np.zeros(STATES, dtype=np.bool_)  # states from which a character can be completed
        ends[WHOLE] = True
        while True:
            reached = ((after >= 0) & ends[after]).any(axis=1) | ends
            if (reached == ends).all():
                return ~((after >= 0) & ends[after])
            ends = reached

    def _piece(self, token_id: int) -> bytes | None:
        """The bytes of a token that is not whole characters; None for one that is, or that stands for no text."""
        if token_id not in self._seen:
            self._seen[token_id] = self._read(token_id)
        return self._seen[token_id]

    def _read(self, token_id: int) -> bytes | None:
        token = None if token_id in self._special_ids else self._spelling(token_id)
        if token is None or (token.lstrip(BLANKS).isascii() and not token.startswith("<0x")):
            return None
        data = self._bytes_of(token)
        return None if state_after(data) == WHOLE else data
