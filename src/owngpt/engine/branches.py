"""A beam search among the engine's other texts: each live beam is a task, and all its beams take their step together.

A beam that splits shares its full blocks with its twin and copies the last one. A beam whose logits have come waits for the
others, holding its memory; if that is taken from it, it is computed again like any other text.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor

from owngpt.engine.beam import BeamSearch
from owngpt.engine.request import Event, Finished, Piece, Usage
from owngpt.engine.scheduler import Scheduler, Task


class Branches:
    """The tasks of one search."""

    def __init__(self, search: BeamSearch, prompt_ids: list[int]) -> None:
        self.search = search
        self.tasks: list[Task] = []
        """One for each of the search's live beams."""
        self._prompt_ids = prompt_ids
        self._logits: dict[Task, Tensor] = {}
        self._numbers = count(1)

    def receive(self, task: Task, logits: Tensor) -> bool:
        """Take a task's (V,) logits. :returns: whether all are there now."""
        if not self.tasks:
            self.tasks = [task]
        self._logits[task] = logits.clone()
        return len(self._logits) == len(self.tasks)

    def step(self, scheduler: Scheduler, copy_block: Callable[[int, int], None], drop: Callable[[Task], None]) -> list[Task]:
        """Grow the beams and give each a task.

        :param copy_block: the runner's.
        :param drop: ends a task.
        :returns: the tasks that are new.
        :raises OwnGPTError: as :meth:`BeamSearch.step`.
        """
        logits = torch.stack([self._logits[task] for task in self.tasks])
        self._logits.clear()
        rows = self.search.step(logits)
        if self.search.over:
            return []
        for row, task in enumerate(self.tasks):
            if row not in rows:
                drop(task)
        tasks, new = [], []
        for place, row in enumerate(rows):
            if row in rows[place + 1 :]:  # the last to grow from a task goes on in it, the others split off before
                task = scheduler.split(self.tasks[row], next(self._numbers), copy_block)
                new.append(task)
            else:
                task = self.tasks[row]
            tasks.append(task)
        for task, beam in zip(tasks, self.search.live, strict=True):
            task.token_ids = [*self._prompt_ids, *beam.token_ids]
        self.tasks = tasks
        return new

    def events(self) -> list[Event]:
        """What the search found, best first: the tokens of each text, then that it is finished."""
        first = self.tasks[0]
        events: list[Event] = []
        for index, generation in enumerate(self.search.generations()):
            events += self._pieces(index)
            usage = Usage(len(self._prompt_ids), first.cached_tokens, len(generation.token_ids))
            events.append(Finished(index, generation, usage))
        return events

    def _pieces(self, index: int) -> list[Event]:
        beam = self.search.found[index].beam
        scores = beam.scores or ((None, ()),) * len(beam.token_ids)
        sequence = self.search.new_sequence()
        pieces: list[Event] = []
        for token_id, (score, top) in zip(beam.token_ids, scores, strict=True):
            text = sequence.push(token_id)
            if len(pieces) == len(beam.token_ids) - 1 and sequence.stop_reason is None:
                text += sequence.finish()
            pieces.append(Piece(index, text, token_id, score, top))
        return pieces
