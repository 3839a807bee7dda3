"""Turns of a chat put together to as few sequences as show each answer behind what serving shows before it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from owngpt.finetune.examples.example import Origin
from owngpt.finetune.sequences.encoded import Encoded


@dataclass
class Span:
    """Token ids, and which of them are learned."""

    token_ids: list[int]
    learned: list[bool]


def join_turns(turns: Iterable[Span]) -> list[Span]:
    """A turn whose ids begin with all of those before it learns with them in one sequence; another one begins anew."""
    joined: list[Span] = []
    for turn in turns:
        last = joined[-1] if joined else None
        if last is not None and turn.token_ids[: len(last.token_ids)] == last.token_ids:
            learned = [a or b for a, b in zip(last.learned, turn.learned, strict=False)]
            joined[-1] = Span(turn.token_ids, learned + turn.learned[len(learned) :])
        else:
            joined.append(turn)
    return joined


def make_encoded(span: Span, origin: Origin, label: int = -1) -> Encoded:
    """As arrays; the first token, before which there is nothing, is not learned."""
    learned = np.array(span.learned, dtype=bool)
    learned[:1] = False
    return Encoded(np.array(span.token_ids, dtype=np.int64), learned, origin, label)
