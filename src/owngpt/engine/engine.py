"""Many requests at once over one model: schedule, run, choose.

One background thread owns the compute. It sleeps while there is nothing to do. Each step it lets go of what was cancelled,
plans (:mod:`owngpt.engine.scheduler`), runs the model (:mod:`owngpt.engine.runner`), chooses a token for every text that is
due, and hands on what it means. A fault inside one request ends that request; the others do not notice.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from owngpt.engine.admission import checked_prompt
from owngpt.engine.beam import BeamSearch
from owngpt.engine.blocks import BlockPool
from owngpt.engine.branches import Branches
from owngpt.engine.layout import Part
from owngpt.engine.request import Failed, Finished, Piece, Request, Stream, Usage
from owngpt.engine.runner import Runner
from owngpt.engine.sampling import Choice, Sampler, pick
from owngpt.engine.scheduler import Scheduler, Task, Work
from owngpt.engine.sequence import TextSequence
from owngpt.engine.speculation import Speculation
from owngpt.errors import EngineError, ModelFolderError, OwnGPTError, UsageError
from owngpt.formats.peft import load_adapter
from owngpt.text.tokenizer import Tokenizer

MOST_WAITING = 4096
"""Texts that may wait; more are refused, so that a flood cannot fill the memory."""


@dataclass(frozen=True)
class EngineStats:
    """Counts since the engine was made, and its present load."""

    requests: int
    finished: int
    failed: int
    cancelled: int
    running: int
    waiting: int
    prompt_tokens: int
    cached_tokens: int
    """Tokens of prompts that came from the cache."""
    written_tokens: int
    steps: int
    preemptions: int
    blocks: int
    free_blocks: int
    cached_blocks: int
    """Free blocks whose content can still be found."""
    guessed_tokens: int
    """Tokens that speculation guessed."""
    accepted_tokens: int
    """Those of them that the texts went on with."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Outcome:
    """What a step gave."""

    done: Sequence[Work]
    logits: Tensor
    """(R, V), the rows of each work of ``done``."""
    errors: dict[Task, OwnGPTError]


_NO_LOGITS = torch.empty(0, 0)


class Engine:
    """Runs requests over a runner. Close it, or use it as a context manager, to end its thread."""

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        *,
        context_length: int,
        most_rows: int = 64,
        speculation: Speculation | None = None,
    ) -> None:
        """
        :param runner: a model and the memory of its cache.
        :param context_length: longest text in tokens, prompt included.
        :param most_rows: texts that are written side by side.
        :param speculation: how to guess tokens; its own for each engine.
        :raises UsageError: the context is longer than the model's.
        """
        config = runner.config
        if context_length > config.context_length:
            raise UsageError(
                f"context_length {context_length} is more than the {config.context_length} positions that the model knows; "
                f"use {config.context_length} or less"
            )
        self.runner, self.tokenizer, self.context_length = runner, tokenizer, context_length
        windows = [config.window(layer) for layer in range(config.layers)]
        self._scheduler = Scheduler(
            BlockPool(runner.blocks, runner.block_size),
            most_rows=most_rows,
            window=max(windows) if all(windows) else 0,
            whole_prompts=config.turns_by_length,
        )
        self._speculation = speculation
        self._samplers: dict[Task, Sampler] = {}
        self._adapters: dict[str, object] = {}  # name → a mark of this very loading
        self._loading = threading.Lock()
        self._lock = threading.Condition()
        self._new: list[Task] = []
        self._cancelled: set[Stream] = set()
        self._counts = dict.fromkeys(
            ("requests", "finished", "failed", "cancelled", "prompt_tokens", "cached_tokens", "written_tokens", "steps",
             "guessed_tokens", "accepted_tokens"), 0
        )  # fmt: skip
        self._arrivals, self._closing = 0, False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, request: Request) -> Stream:
        """Take a request; its stream begins at once.

        :raises UsageError: a field is out of range, the prompt does not fit, or too many texts wait.
        :raises EngineError: the engine is closed.
        """
        prompt = checked_prompt(request, self.tokenizer, self.context_length, self._scheduler)
        samplers = self._new_samplers(request, len(prompt))
        stream = Stream(request.config.num_return_sequences, lambda: self._cancel(stream))
        with self._lock:
            if self._closing:
                raise EngineError("the engine is closed")
            # Where a token's rotation depends on its text's length, texts of different requests share nothing.
            mark = object() if self.runner.config.turns_by_length else self._adapter_mark(request.adapter)
            if len(self._scheduler.waiting) + len(self._new) + len(samplers) > MOST_WAITING:
                raise UsageError(f"{MOST_WAITING} texts are waiting already; try again when some have finished")
            self._arrivals += 1
            self._counts["requests"] += 1
            self._counts["prompt_tokens"] += len(prompt)
            for index, sampler in enumerate(samplers):
                task = Task(request, stream, index, self._text(request, len(prompt)), list(prompt), self._arrivals, mark)
                if request.config.num_beams > 1:
                    task.branches = self._new_search(task, sampler)
                self._samplers[task] = sampler
                self._new.append(task)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="owngpt-engine", daemon=True)
                self._thread.start()
            self._lock.notify()
        return stream

    def guess_with(self, speculation: Speculation | None) -> None:
        """From the next step on guess tokens so; what is written stays the same.

        :param speculation: of no other engine; None guesses no more.
        """
        with self._lock:
            self._speculation = speculation

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the loaded adapters."""
        with self._lock:
            return tuple(self._adapters)

    def load_adapter(self, name: str, folder: str | Path) -> None:
        """Take a LoRA adapter that PEFT stored, under a name for :class:`Request`; what runs goes on.

        :raises UsageError: the name is taken or empty.
        :raises ModelFolderError: the folder is no such adapter, or not for this model.
        """
        with self._loading:
            if not name or name in self._adapters:
                raise UsageError(f"the name {name!r} for an adapter is {'taken; unload it first' if name else 'empty; give one'}")
            self.runner.load_adapter(name, load_adapter(folder, self.runner.config))
            with self._lock:
                self._adapters[name] = object()

    def unload_adapter(self, name: str) -> None:
        """Let an adapter go.

        :raises UsageError: there is none of this name, or requests use it.
        """
        with self._loading:
            with self._lock:
                self._adapter_mark(name)
                users = {task.stream for task in self._samplers if task.request.adapter == name}
                if users:
                    raise UsageError(
                        f"{len(users)} requests use the adapter {name!r}; wait for them or cancel them, then unload it"
                    )
                del self._adapters[name]
            self.runner.unload_adapter(name)

    def stats(self) -> EngineStats:
        """What was done and what is going on."""
        with self._lock:
            scheduler, pool = self._scheduler, self._scheduler.pool
            return EngineStats(
                **self._counts, running=len(scheduler.running), waiting=len(scheduler.waiting) + len(self._new),
                preemptions=scheduler.preemptions, blocks=pool.size, free_blocks=pool.available, cached_blocks=pool.cached,
            )  # fmt: skip

    def close(self) -> None:
        """End the thread; what still runs is cancelled."""
        with self._lock:
            self._closing = True
            self._lock.notify()
        if self._thread is not None:
            self._thread.join()

    def check(self) -> None:
        """Our own invariants, between two steps: no block is lost or given twice."""
        with self._lock:
            self._scheduler.check()

    # Submitting

    def _adapter_mark(self, name: str | None) -> object:
        if name is None:
            return None
        if name not in self._adapters:
            loaded = f"loaded are: {', '.join(self._adapters)}" if self._adapters else "none is loaded"
            raise UsageError(f"there is no adapter {name!r}; {loaded}")
        return self._adapters[name]

    def _new_samplers(self, request: Request, prompt_tokens: int) -> list[Sampler]:
        """One for each text; a beam search has one, which it forks."""
        config, end_ids = request.config, self._end_ids(request)
        first = Sampler(config, self.tokenizer, prompt_tokens=prompt_tokens, end_ids=end_ids)
        count = 1 if config.num_beams > 1 else config.num_return_sequences
        return [first, *(first.fork(index) for index in range(1, count))]

    def _new_search(self, task: Task, sampler: Sampler) -> Branches:
        request, prompt = task.request, list(task.token_ids)
        most = self.context_length - len(prompt)
        search = BeamSearch(
            request.config, lambda: self._text(request, len(prompt)), self._end_ids(request), prompt, sampler, most
        )
        return Branches(search, prompt)

    def _end_ids(self, request: Request) -> frozenset[int]:
        if request.config.ignore_end:
            return frozenset()
        return self.tokenizer.stop_ids if request.end_ids is None else request.end_ids

    def _text(self, request: Request, prompt_tokens: int) -> TextSequence:
        rolls = request.config.on_full == "roll"
        limit = request.config.max_new_tokens if rolls else self.context_length - prompt_tokens
        return TextSequence(self.tokenizer, request.config, self._end_ids(request), limit)

    def _cancel(self, stream: Stream) -> None:
        with self._lock:
            self._cancelled.add(stream)
            self._lock.notify()

    # The thread

    def _work(self) -> None:
        while True:
            with self._lock:
                self._receive()
                while self._scheduler.idle and not self._closing:
                    self._lock.wait()
                    self._receive()
                if self._closing:
                    self._end_all()
                    return
                plan = self._scheduler.plan()
            started = time.perf_counter()
            plan = self._with_guesses(plan)
            outcome = self._run(plan)
            with self._lock:
                written = self._after(outcome)
                seconds = time.perf_counter() - started
                self._scheduler.took(plan, seconds)
                if self._speculation is not None:
                    self._speculation.took(plan, written, seconds)

    def _receive(self) -> None:
        """New tasks in, cancelled ones out."""
        for task in self._new:
            self._scheduler.add(task)
        self._new.clear()
        for stream in self._cancelled:
            tasks = [task for task in self._samplers if task.stream is stream]
            for task in tasks:
                self._drop(task)
            if tasks:
                self._counts["cancelled"] += 1
                stream.put(None)
        self._cancelled.clear()

    def _end_all(self) -> None:
        for stream in {task.stream for task in self._samplers}:
            stream.put(Failed(EngineError("the engine was closed before the text was finished")))
        for task in list(self._samplers):
            self._drop(task)

    def _with_guesses(self, plan: list[Work]) -> list[Work]:
        if self._speculation is None:
            return plan
        try:
            with torch.inference_mode():
                guesses = self._speculation.guess(plan, self.context_length)
        except Exception as error:  # the texts do not need it
            warnings.warn(f"speculation is off: {error}", RuntimeWarning, stacklevel=1)
            self._speculation = None
            return plan
        if not guesses:
            return plan
        with self._lock:
            plan = [self._scheduler.with_guesses(work, guesses.get(work.task, ())) for work in plan]
            self._counts["guessed_tokens"] += sum(len(work.guessed) for work in plan)
        return plan

    def _run(self, plan: Sequence[Work]) -> _Outcome:
        try:
            with torch.inference_mode():
                return _Outcome(plan, self.runner.run([_part(work) for work in plan]), {})
        except Exception as error:  # whatever it is, it must not end the thread
            if len(plan) == 1:
                known = error if isinstance(error, OwnGPTError) else EngineError(f"the model could not run: {error}")
                return _Outcome((), _NO_LOGITS, _only(plan[0].task, known))
        outcomes = [self._run([work]) for work in plan]  # one of them spoils it: find out which, and go on with the others
        return _Outcome(
            [work for outcome in outcomes for work in outcome.done],
            torch.cat([outcome.logits.clone() for outcome in outcomes if len(outcome.logits)] or [_NO_LOGITS]),
            {task: error for outcome in outcomes for task, error in outcome.errors.items()},
        )

    def _after(self, outcome: _Outcome) -> dict[Task, int]:
        """Go on with every text. :returns: how many tokens were written of each."""
        self._counts["steps"] += 1
        for task, error in outcome.errors.items():
            self._fail(task, error)
        ends = list(accumulate(work.rows for work in outcome.done))
        due = {work.task: (end - work.rows, work.guessed) for work, end in zip(outcome.done, ends, strict=True) if work.complete}
        for work in [work for work in outcome.done if work.task in self._samplers]:
            self._scheduler.advance(work)
        known = {task: place for task, place in due.items() if task in self._samplers}
        written = self._write(outcome.logits, {task: place for task, place in known.items() if task.branches is None})
        for task, (row, _) in known.items():
            if task.branches is not None and task in self._samplers:
                self._start(task)
                if task.branches.receive(task, outcome.logits[row]):
                    self._branch(task, task.branches)
        return written

    def _write(self, logits: Tensor, places: dict[Task, tuple[int, tuple[int, ...]]]) -> dict[Task, int]:
        """The next token of each text, and more where it was guessed right: then the row after it is that of the next token.

        :param places: for each text its first row and what was guessed.
        """
        written: dict[Task, int] = dict.fromkeys(places, 0)
        while places:
            rows = [row for row, _ in places.values()]
            choices = self._choose(logits if rows == list(range(len(logits))) else logits[rows], list(places))
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
                    self._counts["accepted_tokens"] += 1
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

    def _branch(self, task: Task, branches: Branches) -> None:
        """All beams of a search have their logits: they grow, or the search is over."""
        sampler = self._samplers[task]
        try:
            new = branches.step(self._scheduler, self.runner.copy_block, self._drop)
            events = branches.events() if branches.search.over else []
        except Exception as error:
            known = error if isinstance(error, OwnGPTError) else EngineError(f"the search failed: {error}")
            self._fail(next(other for other in self._samplers if other.stream is task.stream), known)
            return
        self._samplers.update(dict.fromkeys(new, sampler))
        if not events:
            return
        for event in events:
            task.stream.put(event)
            self._counts["written_tokens"] += isinstance(event, Piece)
            self._counts["finished"] += isinstance(event, Finished)
        task.stream.put(None)
        for other in list(branches.tasks):
            self._drop(other)

    def _start(self, task: Task) -> None:
        if not task.started:
            task.started = True
            self._counts["cached_tokens"] += task.cached_tokens

    def _push(self, task: Task, choice: Choice) -> None:
        self._start(task)
        self._counts["written_tokens"] += 1
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
            self._counts["finished"] += 1
            self._drop(task)
        elif task.length > self.context_length:
            self._scheduler.roll(task, self.context_length)
            if self._speculation is not None:
                self._speculation.forget(task)

    def _fail(self, task: Task, error: OwnGPTError) -> None:
        """End a request, all its texts: its stream says why."""
        if task not in self._samplers:  # another of its texts failed in the same step
            return
        spoiled = isinstance(error, ModelFolderError)
        for other in [other for other in self._samplers if other.stream is task.stream]:
            self._drop(other, forget=spoiled)
        self._counts["failed"] += 1
        task.stream.put(Failed(error))

    def _drop(self, task: Task, *, forget: bool = False) -> None:
        del self._samplers[task]
        if self._speculation is not None:
            self._speculation.forget(task)
        blocks = list(task.blocks)
        self._scheduler.remove(task, forget=forget)
        if forget:
            for block in blocks:
                if not self._scheduler.pool.held(block):
                    self.runner.forget_block(block)


def _only(task: Task, error: OwnGPTError) -> dict[Task, OwnGPTError]:
    return {task: error}


def _part(work: Work) -> Part:
    task = work.task
    token_ids = [*task.visible(task.computed, task.computed + work.count), *work.guessed]
    return Part(token_ids, task.computed, task.blocks, work.rows, task.request.adapter)
