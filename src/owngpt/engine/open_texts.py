"""The texts of an engine that are not finished: each goes on by what a step gave, and ends with its reason told.

Only the engine's thread calls what is here, while it holds the engine's lock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from owngpt.engine.branches import Branches
from owngpt.engine.counts import Counts
from owngpt.engine.outcome import Outcome
from owngpt.engine.request import Failed, Finished, Piece, Stream, Usage
from owngpt.engine.runner import Runner
from owngpt.engine.sampling import Choice, Sampler, pick
from owngpt.engine.scheduler import Scheduler, Task, Work
from owngpt.engine.speculation import Speculation
from owngpt.errors import EngineError, ModelFolderError, OwnGPTError


class OpenTexts:
    """Tasks and what chooses their tokens."""

    def __init__(self, runner: Runner, scheduler: Scheduler, counts: Counts, context_length: int) -> None:
        """
        :param scheduler: told of every text that goes on or ends.
        :param counts: of the engine, kept up to date.
        :param context_length: tokens that the model sees at most.
        """
        self._runner, self._scheduler, self._counts, self._context_length = runner, scheduler, counts, context_length
        self._samplers: dict[Task, Sampler] = {}
        self.speculation: Speculation | None = None
        """Forgets the texts that end."""

    def __iter__(self) -> Iterator[Task]:
        return iter(list(self._samplers))

    def add(self, task: Task, sampler: Sampler) -> None:
        """A text begins."""
        self._samplers[task] = sampler

    def of(self, stream: Stream) -> list[Task]:
        """The texts of a request."""
        return [task for task in self._samplers if task.stream is stream]

    def cancel(self, stream: Stream) -> None:
        """Nobody reads a request's texts any more."""
        tasks = self.of(stream)
        for task in tasks:
            self._drop(task)
        if tasks:
            self._counts.cancelled += 1
            stream.put(None)

    def tell_all(self, error: OwnGPTError) -> None:
        """No text will go on: every stream ends with an error."""
        for stream in {task.stream for task in self._samplers}:
            stream.put(Failed(error))

    def fail_all(self, error: OwnGPTError) -> None:
        """No text can go on, and what they hold is free."""
        self.tell_all(error)
        for task in self:
            self._drop(task)

    def go_on(self, outcome: Outcome) -> dict[Task, int]:
        """Go on with every text. :returns: how many tokens were written of each."""
        self._counts.steps += 1
        first_rows = outcome.first_rows  # before what was computed counts as such, and what failed lets go
        for task, error in outcome.errors.items():
            self._fail(task, error)
        drawn: dict[Task, tuple[int, tuple[int, ...]]] = {}
        searching: dict[Task, int] = {}
        for work, row in zip(outcome.done, first_rows, strict=True):
            if work.task in self._samplers:
                self._scheduler.advance(work)
                if row is not None and work.task.branches is None:
                    drawn[work.task] = row, work.guessed
                elif row is not None:
                    searching[work.task] = row
        written = self._write(outcome.logits, drawn)
        for task, row in searching.items():
            if task.branches is not None and task in self._samplers:
                self._start(task)
                if task.branches.receive(task, outcome.logits[row]):
                    self._branch(task, task.branches)
        return written

    # Texts that are drawn

    def _write(self, logits: Tensor, places: dict[Task, tuple[int, tuple[int, ...]]]) -> dict[Task, int]:
        """The next token of each text, and more where it was guessed right: then the row after it is that of the next token.

        :param places: for each text its first row and what was guessed.
        """
        written: dict[Task, int] = dict.fromkeys(places, 0)
        while places:
            rows = [row for row, _ in places.values()]
            choices = self._choose(logits if rows == list(range(logits.shape[0])) else logits[rows], list(places))
            following = {}
            for task, choice in choices.items():
                if task not in self._samplers:  # a sibling failed just before
                    continue
                if isinstance(choice, OwnGPTError):
                    self._fail(task, choice)
                    continue
                self._push(task, choice)
                written[task] += 1
                row, guessed = places[task]
                if task in self._samplers and guessed and guessed[0] == choice.token_id:
                    self._scheduler.advance(Work(task, 1))
                    self._counts.accepted_tokens += 1
                    following[task] = (row + 1, guessed[1:])
            places = following
        return written

    def _choose(self, logits: Tensor, tasks: Sequence[Task]) -> dict[Task, Choice | OwnGPTError]:
        try:
            choices = pick(logits, [self._samplers[task] for task in tasks], [task.token_ids for task in tasks])
        except Exception as error:  # whatever it is, it must not end the thread, nor the other texts
            if len(tasks) == 1:
                return {tasks[0]: EngineError(f"no token could be chosen: {error}")}
            alone = [self._choose(logits[row : row + 1], [task]) for row, task in enumerate(tasks)]
            return {task: choice for found in alone for task, choice in found.items()}
        return dict(zip(tasks, choices, strict=True))

    def _push(self, task: Task, choice: Choice) -> None:
        self._start(task)
        self._counts.written_tokens += 1
        try:
            text = task.text.push(choice.token_id)
            if choice.last and task.text.stop_reason is None:
                text += task.text.finish()
        except Exception as error:
            self._fail(task, EngineError(f"a token could not be turned into text: {error}"))
            return
        task.token_ids.append(choice.token_id)
        task.stream.put(Piece(task.index, text, choice.token_id, choice.score, choice.top))
        if task.text.stop_reason is not None:
            generation = task.text.result()
            usage = Usage(self._samplers[task].prompt_tokens, task.cached_tokens, len(generation.token_ids))
            task.stream.put(Finished(task.index, generation, usage))
            self._counts.finished += 1
            self._drop(task)
        elif task.length > self._context_length:
            self._scheduler.roll(task, self._context_length)
            if self.speculation is not None:
                self.speculation.forget(task)

    def _start(self, task: Task) -> None:
        if not task.started:
            task.started = True
            self._counts.cached_tokens += task.cached_tokens

    # Texts that are searched for

    def _branch(self, task: Task, branches: Branches) -> None:
        """All beams of a search have their logits: they grow, or the search is over."""
        sampler = self._samplers[task]
        try:
            new = branches.step(self._scheduler, self._runner.copy_block, self._drop)
            events = branches.events() if branches.search.over else []
        except Exception as error:
            known = error if isinstance(error, OwnGPTError) else EngineError(f"the search failed: {error}")
            self._fail(self.of(task.stream)[0], known)
            return
        self._samplers.update(dict.fromkeys(new, sampler))
        if not events:
            return
        for event in events:
            task.stream.put(event)
            self._counts.written_tokens += isinstance(event, Piece)
            self._counts.finished += isinstance(event, Finished)
        task.stream.put(None)
        for other in list(branches.tasks):
            self._drop(other)

    # The end

    def _fail(self, task: Task, error: OwnGPTError) -> None:
        """End a request, all its texts: its stream says why."""
        if task not in self._samplers:  # another of its texts failed in the same step
            return
        spoiled = isinstance(error, ModelFolderError)
        for other in self.of(task.stream):
            self._drop(other, forget=spoiled)
        self._counts.failed += 1
        task.stream.put(Failed(error))

    def _drop(self, task: Task, *, forget: bool = False) -> None:
        del self._samplers[task]
        if self.speculation is not None:
            self.speculation.forget(task)
        blocks = list(task.blocks)
        self._scheduler.remove(task, forget=forget)
        if forget:
            for block in blocks:
                if not self._scheduler.pool.held(block):
                    self._runner.forget_block(block)
