"""Whether a text repeats itself, on the tokens of any language."""

from __future__ import annotations

from collections.abc import Sequence

GROUP = 4
"""Tokens in a row that are compared."""
LEAST_LOOP = 16
"""Tokens that a repetition covers, at least, to be called a loop."""
LEAST_TIMES = 3
LONGEST_PERIOD = 64


def distinct_share(token_ids: Sequence[int]) -> float:
    """Different groups of four tokens over all groups of four (distinct-n, arXiv 1510.03055); 1 for a text without four."""
    groups = [tuple(token_ids[start : start + GROUP]) for start in range(len(token_ids) - GROUP + 1)]
    return len(set(groups)) / len(groups) if groups else 1.0


def loops(token_ids: Sequence[int]) -> bool:
    """Whether a text ends with the same tokens at least three times in a row, sixteen tokens of it or more."""
    tail = list(token_ids)
    for period in range(1, min(LONGEST_PERIOD, len(tail) // LEAST_TIMES) + 1):
        same = 0
        while same + period < len(tail) and tail[-1 - same] == tail[-1 - same - period]:
            same += 1
        covered = same + period
        if covered >= max(LEAST_LOOP, LEAST_TIMES * period):
            return True
    return False
