"""Speculation: guess a text's next tokens cheaply and let the model check all of them in one step (arXiv 2211.17192).

A step with a few tokens of a text costs little more than one with one, since the weights are read once for all. Each checked
token is chosen just as without speculation, from the same logits with the same random number; a guess only decides how many
are chosen in one step. So the texts are the same, whatever is guessed; in bfloat16 up to the rounding by which a row's sums
depend on how many rows are computed with it, as they do on what else is in a batch.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from owngpt.engine.draft import DraftModel

if TYPE_CHECKING:
    from owngpt.engine.scheduler import Task, Work

LONGEST = 15
"""Most tokens guessed for one text: with its own next token they fill a matrix tile."""
MOST_TOKENS = 64
"""Of a step, guessed ones included."""
SIZES = (4, 3, 2)
"""Numbers of tokens by which an earlier place is recognised, the surest first."""
MEASURED = 8
"""Steps after which it is decided whether guessing pays."""
PAUSE, LONGEST_PAUSE = 64, 4096
"""Steps without guesses where it does not: at first, and after it has not paid again and again."""
REFRESH = 64
"""Every so many steps with guesses, one without shows what that costs by now."""


class Lookup:
    """Guesses that a text goes on as it did where its last tokens stood before: prompt lookup decoding (Saxena 2023)."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        """Tokens → the place behind their last occurrence that something follows."""
        self._learned = 0

    def guess(self, token_ids: Sequence[int], most: int) -> list[int]:
        """At most ``most`` tokens; none where the text's end is new.

        :param token_ids: the text so far: that of the last call, and more.
        """
        for end in range(max(self._learned, 1), len(token_ids)):
            for size in SIZES:
                if end >= size:
                    self._after[tuple(token_ids[end - size : end])] = end
        self._learned = len(token_ids)
        for size in SIZES:
            place = self._after.get(tuple(token_ids[-size:])) if len(token_ids) > size else None
            if place is not None:
                period = len(token_ids) - place  # what overlaps the end repeats itself
                return [token_ids[place + i % period] for i in range(most)]
        return []


@dataclass
class _Record:
    """What steps with a certain number of texts took."""

    plain: deque[float] = field(default_factory=lambda: deque(maxlen=2 * MEASURED))
    """Seconds of steps without guesses."""
    guessed: list[tuple[float, float]] = field(default_factory=list)
    """Seconds, and tokens written for each text."""
    since_plain: int = 0
    paused: int = 0
    next_pause: int = PAUSE


class Payoff:
    """Whether guessing pays, by what steps with and without it took and gave, for each size of batch by itself."""

    def __init__(self) -> None:
        self._records: dict[int, _Record] = {}

    def wants(self, texts: int) -> bool:
        """Whether to guess in the next step."""
        record = self._record(texts)
        if record.paused:
            record.paused -= 1
            return False
        return len(record.plain) >= MEASURED // 2 and record.since_plain < REFRESH

    def took(self, texts: int, written: int | None, seconds: float) -> None:
        """Learn from a step.

        :param written: tokens of all texts where some were guessed, else None.
        """
        record = self._record(texts)
        if written is None:
            record.plain.append(seconds)
            record.since_plain = 0
            return
        record.since_plain += 1
        record.guessed.append((seconds, written / texts))
        if len(record.guessed) == MEASURED:
            self._decide(record)

    def _decide(self, record: _Record) -> None:
        cost = statistics.median(seconds for seconds, _ in record.guessed) / statistics.median(record.plain)
        gain = statistics.mean(written for _, written in record.guessed)
        record.guessed.clear()
        if gain >= cost:
            record.next_pause = PAUSE
        else:
            record.paused, record.next_pause = record.next_pause, min(2 * record.next_pause, LONGEST_PAUSE)

    def _record(self, texts: int) -> _Record:
        return self._records.setdefault(texts.bit_length(), _Record())


@dataclass
class _Text:
    """What is remembered of one text."""

    lookup: Lookup = field(default_factory=Lookup)
    reach: int = 4
    """Tokens to guess next time."""


class Speculation:
    """Guesses for the texts of an engine, which calls everything here from its own thread."""

    def __init__(self, *, lookup: bool = True, draft: DraftModel | None = None) -> None:
        """
        :param lookup: guess from the text itself.
        :param draft: a small model that guesses where the text itself says nothing.
        """
        self._lookup, self._draft = lookup, draft
        self._payoff = Payoff()
        self._texts: dict[Task, _Text] = {}

    def guess(self, plan: Sequence[Work], context_length: int) -> dict[Task, list[int]]:
        """Guesses for a step in which every text writes its next token; none for any other step, or when it does not pay."""
        if any(work.count != 1 or not work.task.started or work.task.branches is not None for work in plan):
            return {}
        if not plan or len(plan) > MOST_TOKENS // 2 or not self._payoff.wants(len(plan)):
            return {}
        most = min(LONGEST, MOST_TOKENS // len(plan) - 1)
        limits = {work.task: min(most, self._reach(work.task, context_length)) for work in plan}
        found = self._looked_up(limits) if self._lookup else {}
        if self._draft is not None:
            missing = {task: limit for task, limit in limits.items() if task not in found and limit > 0}
            found |= self._draft.guess({task: (task.visible(), limit) for task, limit in missing.items()})
        return found

    def took(self, plan: Sequence[Work], written: Mapping[Task, int], seconds: float) -> None:
        """Learn from a step: what was guessed, what was written of each text, and how long it took, guessing included."""
        if any(work.count != 1 for work in plan):
            return
        guessed = [work for work in plan if work.guessed]
        self._payoff.took(len(plan), sum(written.values()) if guessed else None, seconds)
        for work in guessed:
            text = self._texts.get(work.task)
            if text is not None:
                right = written.get(work.task, 0) - 1
                text.reach = min(2 * text.reach, LONGEST) if right == len(work.guessed) else max(right + 1, 1)

    def forget(self, task: Task) -> None:
        """A text has ended, or what the model sees of it has changed."""
        self._texts.pop(task, None)
        if self._draft is not None:
            self._draft.forget(task)

    def _reach(self, task: Task, context_length: int) -> int:
        """Most tokens that are worth guessing: no more than the text may still have."""
        text = self._texts.setdefault(task, _Text())
        left = task.request.config.max_new_tokens - len(task.text.token_ids) - 1
        return min(text.reach, left, context_length - task.length)

    def _looked_up(self, limits: Mapping[Task, int]) -> dict[Task, list[int]]:
        found = {task: self._texts[task].lookup.guess(task.token_ids, limit) for task, limit in limits.items() if limit > 0}
        return {task: tokens for task, tokens in found.items() if tokens}
