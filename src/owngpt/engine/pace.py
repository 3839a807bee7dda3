"""How many tokens of prompts may join a step of texts that are being written, so that their readers do not notice.

Learned from what steps took. Where a step's time depends on its rows in whole tiles of 16, budgets fill those up.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

from owngpt.engine.layout import TILE, rounded

LARGEST_PIECE = 512
"""Tokens of prompts in one step while nobody is writing."""
SMALLEST_PIECE = TILE // 2
"""At least, where a whole tile costs what a part of it does."""
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

    def __init__(self, largest_piece: int = LARGEST_PIECE, grain: int = TILE) -> None:
        """
        :param grain: rows that a step's time grows by.
        """
        self.largest_piece, self._grain = largest_piece, grain
        self._writing: deque[float] = deque(maxlen=REMEMBERED)
        self._mixed: dict[int, float] = {}
        """Seconds by the rows of a step, rounded up."""

    def budget(self, writers: int, waiting: int) -> int:
        """Tokens of prompts for a step with so many writers, while so many texts wait for their first token."""
        if not writers:
            return self.largest_piece
        if waiting > CROWD:
            return max(self.largest_piece - writers, TILE)
        rows = self._filled(writers + min(SMALLEST_PIECE, self._grain))
        if self._writing:
            usual = statistics.median(self._writing)
            limit = SLOWDOWN * usual
            while (more := self._filled(rows + 1)) <= self.largest_piece and self._expected(more, writers, usual) <= limit:
                rows = more
        return rows - writers

    def took(self, writers: int, tokens: int, seconds: float) -> None:
        """Learn from a step of so many writers' tokens among all its tokens."""
        if writers == tokens:
            self._writing.append(seconds)
        elif writers:
            rows = self._filled(tokens)
            self._mixed[rows] = (1 - WEIGHT) * self._mixed.get(rows, seconds) + WEIGHT * seconds

    def _expected(self, rows: int, writers: int, usual: float) -> float:
        """Seconds of a step of so many rows: as known, or by what rows beyond the writers' cost in the nearest smaller one.

        That is at least half as large: rows that seemed to cost nothing say nothing of many more.
        """
        known = max((size for size in self._mixed if writers < size <= rows), default=0)
        if 2 * known < rows:
            return math.inf
        found = self._mixed[known]
        return found + max(found - usual, 0.0) * (rows - known) / (known - writers)

    def _filled(self, rows: int) -> int:
        """As many rows or more, of which none is computed in vain."""
        return rounded(-(-rows // self._grain) * self._grain)
