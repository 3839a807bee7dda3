"""Beam search: the likeliest texts, not a drawn one. The same texts as transformers', step by step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from owngpt.config.generation import GenerationConfig
from owngpt.engine.request import TokenScore
from owngpt.engine.sampling import Sampler, nothing_to_choose, process, without_broken
from owngpt.engine.sequence import Generation, TextSequence, replay

Score = tuple[TokenScore | None, tuple[TokenScore, ...]]


@dataclass(frozen=True, eq=False)
class Beam:
    """A text on the search's frontier."""

    token_ids: tuple[int, ...]
    log_probability: float
    """Sum over its tokens, natural logarithm."""
    sampler: Sampler
    scores: tuple[Score, ...] = ()
    """Of each token, where they were asked for."""


@dataclass(frozen=True)
class Found:
    """A finished text and what it compares by."""

    score: float
    beam: Beam


def normalized(log_probability: float, length: int, length_penalty: float = 1.0) -> float:
    """Score by which texts of different lengths compare: log P / length^penalty; 1 is the mean of the tokens'."""
    return float(log_probability / length**length_penalty)


class BeamSearch:
    """Keeps the ``num_beams`` likeliest unfinished texts, and the best finished ones, until none seems to improve any more."""

    def __init__(
        self,
        config: GenerationConfig,
        new_sequence: Callable[[], TextSequence],
        end_ids: Collection[int],
        prompt_ids: Sequence[int],
        sampler: Sampler,
        most: int,
    ) -> None:
        """
        :param sampler: penalties and the constraint; the search forks it.
        :param most: most tokens that fit the model's context after the prompt.
        """
        self._config, self.new_sequence = config, new_sequence
        self._ends = frozenset(end_ids) | frozenset(config.stop_token_ids)
        self._prompt_ids = tuple(prompt_ids)
        self._limit = min(config.max_new_tokens, most)
        self._length = 0
        self.live = [Beam((), 0.0, sampler)]
        """Unfinished texts, the likeliest first."""
        self.found: list[Found] = []
        """Finished texts, the best first; complete when the search is over."""

    @property
    def over(self) -> bool:
        """Whether there is nothing left to try, or nothing that seems worth it."""
        if not self.live:
            return True
        if len(self.found) < self._config.num_beams:
            return False
        hope = normalized(self.live[0].log_probability, self._length, self._config.length_penalty)
        return self.found[-1].score >= hope

    def step(self, logits: Tensor) -> list[int]:
        """Grow every live beam by a token.

        :param logits: (live beams, V) float32 on the CPU.
        :returns: for each new live beam, the row that it grew from.
        :raises OwnGPTError: the logits are not numbers, or nothing at all can follow.
        """
        width = self._config.num_beams
        self._length += 1
        own = logits[:, : self.live[0].sampler.vocabulary].float().log_softmax(1)
        totals = self._totals(own)
        # An end token uses up a candidate, so enough are taken that `width` texts can go on.
        best = totals.flatten().topk(min(totals.numel(), width * max(2, 1 + len(self._ends))))
        beams, self.live, rows = self.live, [], []
        for rank, (total, flat) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            if len(self.live) == width or total == float("-inf"):
                break
            row, token_id = divmod(flat, totals.shape[1])
            beam = self._grown(beams[row], token_id, total, own[row])
            if not self._ended(beam):
                self.live.append(beam)
                rows.append(row)
            elif rank < width:
                self._finish(beam)
        if not self.live and not self.found:
            raise nothing_to_choose(logits[0])
        return rows

    def generations(self) -> list[Generation]:
        """The ``num_return_sequences`` best texts, best first; fewer where a constraint allows fewer."""
        return [self.text(found.beam).result() for found in self.found[: self._config.num_return_sequences]]

    def text(self, beam: Beam) -> TextSequence:
        """A finished beam as text."""
        sequence = replay(self.new_sequence(), beam.token_ids)
        if sequence.stop_reason is None:
            sequence.finish()
        return sequence

    def _totals(self, own: Tensor) -> Tensor:
        """(rows, V) float64: log-probability of each beam grown by each token."""
        rows = list(own)
        texts = [(*self._prompt_ids, *beam.token_ids) for beam in self.live]
        errors = process(rows, [beam.sampler for beam in self.live], texts)
        if errors:
            raise next(iter(errors.values()))
        rows = [without_broken(row, beam.sampler, text) for row, beam, text in zip(rows, self.live, texts, strict=True)]
        before = torch.tensor([[beam.log_probability] for beam in self.live], dtype=torch.float64)
        return torch.stack(rows).double() + before

    def _grown(self, beam: Beam, token_id: int, total: float, own: Tensor) -> Beam:
        sampler = beam.sampler.fork() if beam.sampler.changes_logits else beam.sampler
        token_ids = (*beam.token_ids, token_id)
        if sampler.constraint is not None:
            sampler.follow([*self._prompt_ids, *token_ids])
        count = self._config.log_probabilities
        if count is None:
            return Beam(token_ids, total, sampler)
        top = own.topk(min(count, len(own)))
        likeliest = tuple(TokenScore(i, value) for i, value in zip(top.indices.tolist(), top.values.tolist(), strict=True))
        return Beam(token_ids, total, sampler, (*beam.scores, (TokenScore(token_id, float(own[token_id])), likeliest)))

    def _ended(self, beam: Beam) -> bool:
        constraint = beam.sampler.constraint
        if self._length == self._limit or beam.token_ids[-1] in self._ends or (constraint is not None and constraint.complete):
            return True
        return bool(self._config.stop) and replay(self.new_sequence(), beam.token_ids).stop_reason == "stop"

    def _finish(self, beam: Beam) -> None:
        score = normalized(beam.log_probability, len(beam.token_ids), self._config.length_penalty)
        self.found.append(Found(score, beam))
        self.found.sort(key=lambda found: -found.score)
        del self.found[self._config.num_beams :]
