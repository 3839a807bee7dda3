"""How many tokens of prompts may join a step of texts that are being written, so that their readers do not notice.

Learned from what steps took. A step's time depends on its rows in whole tiles of 16, so budgets fill those up.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

LARGEST_PIECE = 512
"""Tokens of prompts in one step while nobody is writing."""
TILE = 16
SLOWDOWN = 1.6
"""How much longer than a step of writers alone a step with a piece of a prompt may take."""
CROWD = 2
"""When more texts than this wait for their first token, all are served sooner by letting them in at full speed: written side by
side they cost little more than one."""
REMEMBERED = 15
WEIGHT = 0.3
"""Of the newest measurement in what is remembered of a size."""


class Pace:
    """Learns what steps take, and says how large the next one may be."""

    def __init__(self, largest_piece: int = LARGEST_PIECE) -> None:
        self.largest_piece = largest_piece
        self._writing: deque[float] = deque(maxlen=REMEMBERED)
        self._mixed: dict[int, float] = {}
        """Seconds by the rows of a step, rounded up to whole tiles."""

    def budget(self, writers: int, waiting: int) -> int:
        """Tokens of prompts for a step with so many writers, while so many texts wait for their first token."""
        if not writers:
            return self.largest_piece
        if waiting > CROWD:
            return max(self.largest_piece - writers, TILE)
        rows = _tiles(writers + 1 + TILE // 2)
        if self._writing:
            limit = SLOWDOWN * statistics.median(self._writing)
            while rows + TILE <= max(self.largest_piece, rows) and self._expected(rows + TILE) <= limit:
                rows += TILE
        return rows - writers

    def took(self, writers: int, tokens: int, seconds: float) -> None:
        """Learn from a step of so many writers' tokens among all its tokens."""
        if writers == tokens:
            self._writing.append(seconds)
        elif writers:
            rows = _tiles(tokens)
            self._mixed[rows] = (1 - WEIGHT) * self._mixed.get(rows, seconds) + WEIGHT * seconds

    def _expected(self, rows: int) -> float:
        """Seconds of a step of so many rows, by the nearest smaller one that is known."""
        known = max((size for size in self._mixed if size <= rows), default=None)
        return math.inf if known is None else self._mixed[known] * rows / known


def _tiles(rows: int) -> int:
    return -(-rows // TILE) * TILE
