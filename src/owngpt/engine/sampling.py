"""From logits to the next token of every text that is due, many texts at once.

Each text has a :class:`Sampler`: its settings, what its penalties count, and where its grammar is. What changes logits comes
first, in the order of transformers' processors (bias, repetition, presence and frequency, n-grams, constraint), on a copy of
the text's row; then :mod:`owngpt.kernels.sampling` draws all rows in one call.

The random number of a token follows from (seed, index of the text, position) alone. So a request with a seed gets the same
text whatever else is running, and after it was stopped and computed again.
"""

from __future__ import annotations

import copy
import hashlib
import secrets
import struct
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from owngpt.config.generation import GenerationConfig
from owngpt.engine.constraint import compile_constraint, fill_masks
from owngpt.engine.request import TokenScore
from owngpt.errors import EngineError, ModelFolderError, OwnGPTError, UsageError
from owngpt.kernels import sampling
from owngpt.text.tokenizer import Tokenizer

RECENT = 64
"""Tokens that may be taken back, as speculation does, and that are therefore compared."""
Row = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Choice:
    """The next token of a text."""

    token_id: int
    score: TokenScore | None = None
    top: tuple[TokenScore, ...] = ()
    last: bool = False
    """Whether the constraint lets nothing follow: the text is complete with this token."""


class UsedTokens:
    """Which tokens a text has, and how often each was written. (N,) ids and counts, ready for arithmetic."""

    def __init__(self) -> None:
        self._place: dict[int, int] = {}
        self._ids = np.zeros(64, dtype=np.int64)
        self._counts = np.zeros(64, dtype=np.float32)

    def add(self, token_id: int, *, written: bool) -> None:
        """One more; tokens of the prompt are used but not counted."""
        place = self._place.setdefault(token_id, len(self._place))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token_id
        self._counts[place] += written

    @property
    def ids(self) -> NDArray[np.int64]:
        """(N,)"""
        return self._ids[: len(self._place)]

    @property
    def counts(self) -> Row:
        """(N,)"""
        return self._counts[: len(self._place)]


class Sampler:
    """How one text's tokens are chosen. Keeps up with the text by itself: :func:`pick` hands it the tokens so far."""

    def __init__(
        self,
        config: GenerationConfig,
        tokenizer: Tokenizer,
        index: int = 0,
        *,
        prompt_tokens: int = 0,
        end_ids: Collection[int] = (),
    ) -> None:
        """
        :param index: which of the request's texts; each has random numbers of its own.
        :param prompt_tokens: how many of the text's first tokens are its prompt.
        :param end_ids: tokens that end the text; a constraint allows them only where it is fulfilled.
        :raises UsageError: a bias for a token that does not exist, or a constraint that cannot be used.
        """
        self.config, self.vocabulary, self.prompt_tokens = config, tokenizer.vocab_size, prompt_tokens
        for name, ids in (("logit_bias", config.logit_bias), ("stop_token_ids", config.stop_token_ids)):
            if ids and max(ids) >= self.vocabulary:
                raise UsageError(f"{name} names token {max(ids)}; the vocabulary's ids are from 0 to {self.vocabulary - 1}")
        self.constraint = compile_constraint(config, tokenizer, end_ids) if config.constrained is not None else None
        self._characters = tokenizer.whole_characters if config.constrained is None else None  # constraints see to it themselves
        self._seed = secrets.randbits(63) if config.seed is None else config.seed
        self._index = index
        self.settings = (config.temperature, config.top_k, config.top_p, config.min_p, config.typical_p)
        self._bias_ids = np.fromiter(config.logit_bias, dtype=np.int64)
        self._biases = np.fromiter(config.logit_bias.values(), dtype=np.float32)
        self._counts_tokens = config.repetition_penalty != 1.0 or bool(config.presence_penalty or config.frequency_penalty)
        self.changes_logits = bool(self._counts_tokens or config.logit_bias or config.no_repeat_ngram_size or config.constrained)
        self._restart()

    def fork(self, index: int | None = None) -> Sampler:
        """Another that has come as far, for a search that splits, or for the request's text number ``index``."""
        twin = copy.copy(self)
        if index is not None:
            twin._index = index
        twin.constraint = None if self.constraint is None else self.constraint.fork()
        twin._restart()
        return twin

    def point(self, position: int, attempt: int = 0) -> float:
        """The random number, from 0 to below 1, of the token that becomes number ``position`` of the text."""
        numbers = struct.pack("<QQQ", self._seed, self._index, position) + (struct.pack("<Q", attempt) if attempt else b"")
        digest = hashlib.blake2b(numbers, digest_size=8).digest()
        return float(int.from_bytes(digest, "little") >> 11) * 2.0**-53

    def process(self, row: Row, token_ids: Sequence[int]) -> None:
        """Change a text's logits in place, all but the constraint.

        :param row: (V,) float32.
        :param token_ids: the text so far, the prompt included.
        """
        self.follow(token_ids)
        config = self.config
        if len(self._bias_ids):
            row[self._bias_ids] += self._biases
        if self._counts_tokens:
            ids, counts = self._used.ids, self._used.counts
            logits = row[ids]
            if config.repetition_penalty != 1.0:
                logits = np.where(logits > 0, logits / config.repetition_penalty, logits * config.repetition_penalty)
            row[ids] = logits - config.presence_penalty * (counts > 0) - config.frequency_penalty * counts
        size = config.no_repeat_ngram_size
        if size and len(token_ids) >= size - 1:
            row[list(self._followers.get(self._context(token_ids, len(token_ids)), ()))] = -np.inf

    def keeps_characters(self, token_ids: Sequence[int], token_id: int) -> bool:
        """Whether the text stays valid UTF-8 with this token."""
        return self._characters is None or self._characters.allows(token_ids, self.prompt_tokens, token_id)

    def breaks_characters(self, token_ids: Sequence[int]) -> NDArray[np.bool_] | None:
        """(V,) the tokens with which the text would not stay valid UTF-8; None where there are no such tokens."""
        if self._characters is None:
            return None
        return self._characters.forbidden[self._characters.state(token_ids, self.prompt_tokens)]

    def follow(self, token_ids: Sequence[int]) -> None:
        """Take note of the text's new tokens, and forget those that are no longer there."""
        kept = min(len(self._seen), len(token_ids))
        start = max(0, kept - RECENT)
        kept = next((i for i in range(start, kept) if self._seen[i] != token_ids[i]), kept)
        if kept < len(self._seen):
            self._take_back(kept)
        for token_id in token_ids[kept:]:
            self._add(token_id)

    def _add(self, token_id: int) -> None:
        position, size = len(self._seen), self.config.no_repeat_ngram_size
        if self._counts_tokens:
            self._used.add(token_id, written=position >= self.prompt_tokens)
        if size and position >= size - 1:
            self._followers[self._context(self._seen, position)].add(token_id)
        if self.constraint is not None and position >= self.prompt_tokens + self.constraint.tokens:
            self.constraint.push(token_id)
        self._seen.append(token_id)

    def _take_back(self, kept: int) -> None:
        tokens = self._seen[:kept]
        if self.constraint is not None:
            self.constraint.take_back(self.constraint.tokens - max(kept - self.prompt_tokens, 0))
        self._restart()
        for token_id in tokens:
            self._add(token_id)

    def _restart(self) -> None:
        """Count from the beginning; the constraint knows by itself how far it is."""
        self._seen: list[int] = []
        self._used = UsedTokens()
        self._followers: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)

    def _context(self, token_ids: Sequence[int], position: int) -> tuple[int, ...]:
        return tuple(token_ids[position - self.config.no_repeat_ngram_size + 1 : position])


def pick(logits: Tensor, samplers: Sequence[Sampler], token_ids: Sequence[Sequence[int]]) -> list[Choice | OwnGPTError]:
    """Choose a token for each row.

    Log-probabilities, where asked for, are of the model's own distribution: what biases, penalties, temperature, truncation
    and constraints do comes after them.

    :param logits: (R, V) float32 on the CPU; ids beyond the tokenizer's vocabulary are never chosen. Not changed.
    :param token_ids: per row its prompt and what was written.
    """
    if not samplers:
        return []
    if logits.shape[1] != samplers[0].vocabulary:
        logits = logits[:, : samplers[0].vocabulary]
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    changed, errors = _changed(logits, samplers, token_ids)
    settings = [
        (*one.settings, one.point(len(ids)) if one.config.temperature else 0.0)
        for one, ids in zip(samplers, token_ids, strict=True)
    ]
    chosen = _whole(logits, changed, settings, sampling.choose(logits, settings, changed), samplers, token_ids)
    scores = _scores(logits, samplers, chosen)
    choices: list[Choice | OwnGPTError] = []
    for row, (one, token_id) in enumerate(zip(samplers, chosen, strict=True)):
        if row in errors:
            choices.append(errors[row])
        elif token_id == sampling.NO_NUMBER:
            choices.append(nothing_to_choose(logits[row]))
        else:
            score, top = scores.get(row, (None, ()))
            choices.append(Choice(token_id, score, top, _ends(one, token_ids[row], token_id)))
    return choices


def _changed(
    logits: Tensor, samplers: Sequence[Sampler], token_ids: Sequence[Sequence[int]]
) -> tuple[dict[int, Tensor], dict[int, OwnGPTError]]:
    """The rows that biases, penalties or constraints change, as they are then, and what went wrong in which row."""
    if not any(one.changes_logits for one in samplers):
        return {}, {}
    rows = list(logits)
    errors = process(rows, samplers, token_ids)
    return {row: rows[row] for row, one in enumerate(samplers) if one.changes_logits}, errors


def _whole(
    logits: Tensor,
    changed: Mapping[int, Tensor],
    settings: Sequence[Sequence[float]],
    chosen: list[int],
    samplers: Sequence[Sampler],
    token_ids: Sequence[Sequence[int]],
) -> list[int]:
    """The choices, but where one would break a character another, among those that do not.

    Looking at what was chosen costs nothing, masking every row would. The second draw has a random number of its own: without
    truncation, a token is then chosen with its probability among those that keep the text valid.
    """
    broken = [
        row for row, (one, token_id) in enumerate(zip(samplers, chosen, strict=True))
        if token_id != sampling.NO_NUMBER and not one.keeps_characters(token_ids[row], token_id)
    ]  # fmt: skip
    if not broken:
        return chosen
    again = []
    for row in broken:
        kept = without_broken(changed.get(row, logits[row]), samplers[row], token_ids[row])
        # Where n-grams or biases leave nothing but broken characters, they give way.
        again.append(kept if kept.isfinite().any() else without_broken(logits[row], samplers[row], token_ids[row]))
    redrawn = [(*settings[row][:-1], samplers[row].point(len(token_ids[row]), attempt=1)) for row in broken]
    for row, token_id in zip(broken, sampling.choose(torch.stack(again), redrawn), strict=True):
        chosen[row] = token_id
    return chosen


def without_broken(row: Tensor, sampler: Sampler, token_ids: Sequence[int]) -> Tensor:
    """(V,) logits or log-probabilities, minus infinity for tokens that would break a character; a copy where there are any."""
    breaks = sampler.breaks_characters(token_ids)
    if breaks is None:
        return row
    changed = row.numpy().copy()
    changed[breaks[: len(changed)]] = -np.inf
    return torch.from_numpy(changed)


def process(rows: list[Tensor], samplers: Sequence[Sampler], token_ids: Sequence[Sequence[int]]) -> dict[int, OwnGPTError]:
    """Bias, penalties, n-grams and constraints of each text. :returns: what went wrong in which row.

    :param rows: (V,) float32 logits or log-probabilities of each text; those that change are replaced by changed copies.
    """
    constrained = []
    for index, one in enumerate(samplers):
        if one.changes_logits:
            changed = rows[index].numpy().copy()  # one thread is faster than waking the others
            rows[index] = torch.from_numpy(changed)
            one.process(changed, token_ids[index])
            if one.constraint is not None:
                constrained.append(index)
    if not constrained:
        return {}
    constraints = [constraint for index in constrained if (constraint := samplers[index].constraint) is not None]
    allowed = fill_masks(constraints, len(rows[0]))
    errors: dict[int, OwnGPTError] = {}
    for index, constraint, mask in zip(constrained, constraints, allowed, strict=True):
        np.copyto(rows[index].numpy(), -np.inf, where=~mask)
        if constraint.error is not None:
            errors[index] = constraint.error
    return errors


def _ends(sampler: Sampler, token_ids: Sequence[int], token_id: int) -> bool:
    if sampler.constraint is None:
        return False
    sampler.follow([*token_ids, token_id])
    return sampler.constraint.complete


def nothing_to_choose(logits: Tensor) -> OwnGPTError:
    """Why no token can be chosen, by the model's own logits."""
    if not torch.isfinite(logits.max()):
        return ModelFolderError("the model's output is not a number: its weights are damaged or its training diverged")
    return EngineError("no token is left to choose: no_repeat_ngram_size or the constraint rules out every one; loosen them")


def _scores(
    logits: Tensor, samplers: Sequence[Sampler], chosen: Sequence[int]
) -> dict[int, tuple[TokenScore, tuple[TokenScore, ...]]]:
    """Of the rows whose texts ask for log-probabilities: the chosen token's, and the likeliest tokens'."""
    asked = [row for row, one in enumerate(samplers) if one.config.log_probabilities is not None and chosen[row] >= 0]
    if not asked:
        return {}
    log_probabilities = logits[asked].log_softmax(1)
    own = log_probabilities.gather(1, torch.tensor([[chosen[row]] for row in asked])).flatten().tolist()
    most = max(samplers[row].config.log_probabilities or 0 for row in asked)
    best = log_probabilities.topk(min(most, logits.shape[1]), dim=1)
    found = {}
    for place, row in enumerate(asked):
        count = samplers[row].config.log_probabilities or 0
        top = zip(best.indices[place, :count].tolist(), best.values[place, :count].tolist(), strict=True)
        found[row] = TokenScore(chosen[row], own[place]), tuple(TokenScore(token_id, value) for token_id, value in top)
    return found
