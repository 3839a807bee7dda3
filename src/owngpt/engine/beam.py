"""Beam search: the likeliest texts, not a drawn one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from owngpt.config.generation import GenerationConfig
from owngpt.engine.cache import CachedContext
from owngpt.engine.sampler import penalize
from owngpt.engine.sequence import Generation, TextSequence, replay

LENGTH_PENALTY = 1.0
"""Exponent alpha of the length normalisation; 1 is nearly the mean log-probability of a token."""


Extend = Callable[[Sequence[Sequence[int]]], Tensor]


@dataclass(frozen=True)
class Beam:
    """A text on the search's frontier."""

    token_ids: tuple[int, ...]
    log_probability: float
    """Sum over its tokens, natural logarithm."""


def normalized(log_probability: float, length: int) -> float:
    """Score by which texts of different lengths compare: log P / ((5 + length) / 6)^alpha (arXiv 1609.08144, eq. 14)."""
    return float(log_probability / ((5 + length) / 6) ** LENGTH_PENALTY)


class BeamSearch:
    """Keeps the ``num_beams`` likeliest unfinished texts, and the best finished ones, until none can still improve."""

    def __init__(
        self,
        config: GenerationConfig,
        new_sequence: Callable[[], TextSequence],
        end_ids: Collection[int],
        prompt_ids: Sequence[int],
    ) -> None:
        self._config = config
        self._new_sequence = new_sequence
        self._end_ids = end_ids
        self._prompt_ids = tuple(prompt_ids)
        self._live = [Beam((), 0.0)]
        self._finished: list[tuple[float, Generation]] = []

    def run(self, context: CachedContext, extend: Extend, most: int) -> list[Generation]:
        """Search on from the prompt.

        :param context: the cache that ``extend`` fills; its rows are the beams.
        :param extend: feeds the next tokens of every row and returns (rows, V) float32 logits on the CPU.
        :param most: most tokens that fit the model's context after the prompt.
        :returns: the ``num_return_sequences`` best texts, best first.
        """
        limit = min(self._config.max_new_tokens, most)
        logits = extend([self._prompt_ids])
        for length in range(1, limit + 1):
            rows = self._step(logits, ends=length == limit)
            if not self._live or self._settled(limit):
                break
            context.select(torch.tensor(rows))
            logits = extend([beam.token_ids[-1:] for beam in self._live])
        self._finished.sort(key=lambda entry: -entry[0])
        return [generation for _, generation in self._finished[: self._config.num_return_sequences]]

    def _step(self, logits: Tensor, ends: bool) -> list[int]:
        """Grow every beam by a token. :returns: for each new live beam, the row that it grew from."""
        width = self._config.num_beams
        totals = self._totals(logits)
        # An end token uses up a candidate, so enough are taken that `width` texts can go on.
        best = totals.flatten().topk(min(totals.numel(), width * (1 + len(self._end_ids))))
        beams, self._live, rows = self._live, [], []
        for rank, (total, flat) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            if len(self._live) == width or total == float("-inf"):
                break
            row, token_id = divmod(flat, totals.shape[1])
            beam = Beam((*beams[row].token_ids, token_id), total)
            if ends or token_id in self._end_ids or self._stops(beam):
                if rank < width:
                    self._finish(beam)
            else:
                self._live.append(beam)
                rows.append(row)
        return rows

    def _totals(self, logits: Tensor) -> Tensor:
        """(rows, V) float64: log-probability of each beam grown by each token."""
        rows = [
            penalize(row, (*self._prompt_ids, *beam.token_ids), self._config.repetition_penalty).double().log_softmax(0)
            for row, beam in zip(logits, self._live, strict=True)
        ]
        return torch.stack(rows) + torch.tensor([[beam.log_probability] for beam in self._live], dtype=torch.float64)

    def _stops(self, beam: Beam) -> bool:
        return bool(self._config.stop) and replay(self._new_sequence(), beam.token_ids).stop_reason == "stop"

    def _finish(self, beam: Beam) -> None:
        generation = replay(self._new_sequence(), beam.token_ids).result()
        self._finished.append((normalized(beam.log_probability, len(beam.token_ids)), generation))
        self._finished.sort(key=lambda entry: -entry[0])
        del self._finished[self._config.num_beams :]

    def _settled(self, limit: int) -> bool:
        """Whether even the likeliest unfinished text, written on to the limit for free, loses to all that are finished."""
        if len(self._finished) < self._config.num_beams:
            return False
        hope = max(normalized(beam.log_probability, limit) for beam in self._live)
        return self._finished[-1][0] >= hope
