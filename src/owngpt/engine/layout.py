"""How the parts of many sequences lie side by side in one call of the compiled kernels.

Rows of one adapter lie together, and every call is rounded up to one of few shapes, so that its tape was recorded before. What
is added for that belongs to segments of its own: of no tokens, or of tokens whose keys and values go to block 0, which no
sequence is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from owngpt.engine.adapters import Span, spans_of
from owngpt.engine.paged import Segment

SPARE_BLOCK = 0
"""Takes what is computed only to fill up a shape."""
ROWS = (1, 2, 3, 4, 8, 12)
"""Numbers of rows that are rounded up to; beyond, multiples of 16."""
TILE = 16
_ROUNDED = (0, *(next(size for size in ROWS if size >= rows) for rows in range(1, ROWS[-1] + 1)))


class Part(NamedTuple):
    """The next tokens of one sequence."""

    token_ids: Sequence[int]
    before: int
    """Tokens that its blocks hold already."""
    blocks: Sequence[int]
    """Its blocks, enough for before + len(token_ids) tokens."""
    wants_logits: int = 1
    """After how many of its last tokens logits are wanted; 0 for a piece of a prompt that is not its last."""
    adapter: str | None = None
    """Name of a loaded adapter."""


class Shape(NamedTuple):
    """What a tape is recorded for."""

    tokens: int
    segments: int
    rows: int
    """Rows that the head is computed for; where it is ``tokens``, they are all rows in their order."""
    spans: tuple[Span, ...]


class Layout(NamedTuple):
    """One call."""

    shape: Shape
    token_ids: list[int]
    segments: list[Segment]
    wanted: list[int]
    """Rows whose logits the parts want, in the parts' order."""


def arrange(parts: Sequence[Part]) -> Layout:
    """Bring the parts of a call into an order and round them up to a shape."""
    decoding = all(len(part.token_ids) == 1 for part in parts)
    token_ids: list[int] = []
    segments: list[Segment] = []
    groups: list[tuple[str | None, int]] = []
    ends: dict[int, int] = {}
    adapters = {part.adapter for part in parts}
    for adapter in sorted(adapters, key=lambda name: name or "") if len(adapters) > 1 else adapters:
        start = len(token_ids)
        for index, part in enumerate(parts):
            if part.adapter == adapter:
                token_ids.extend(part.token_ids)
                segments.append(Segment(part.before, len(part.token_ids), part.blocks))
                ends[index] = len(token_ids)
        missing = rounded(len(token_ids) - start) - (len(token_ids) - start)
        segments += _filling(missing, decoding)
        token_ids += [0] * missing
        groups.append((adapter, len(token_ids) - start))
    wanted = [ends[index] - back for index, part in enumerate(parts) for back in range(int(part.wants_logits), 0, -1)]
    rows = min(rounded(len(wanted)), len(token_ids))
    if decoding and wanted:  # nearly all rows: no gathering
        rows = len(token_ids)
    if not decoding:  # empty ones cost nothing, and one tape serves them all; with fewer than tokens it is none of single tokens
        most = min(-(-len(segments) // TILE) * TILE, len(token_ids) - 1)
        segments += [Segment(0, 0, ())] * (most - len(segments))
    spans = tuple(spans_of([adapter for adapter, _ in groups], [count for _, count in groups])) if adapters != {None} else ()
    return Layout(Shape(len(token_ids), len(segments), rows, spans), token_ids, segments, wanted)


def rounded(rows: int) -> int:
    """The number of rows that a call takes for these."""
    return _ROUNDED[rows] if rows < len(_ROUNDED) else -(-rows // TILE) * TILE


def _filling(missing: int, decoding: bool) -> list[Segment]:
    """Segments that nobody reads: single tokens among single tokens, since those attend in a way of their own."""
    if decoding:
        return [Segment(0, 1, (SPARE_BLOCK,))] * missing
    return [Segment(0, missing, (SPARE_BLOCK,))] if missing else []
