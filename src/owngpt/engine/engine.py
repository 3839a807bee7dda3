"""Many requests at once over one model: schedule, run, choose.

One background thread owns the compute. It sleeps while there is nothing to do. Each step it lets go of what was cancelled,
plans (:mod:`owngpt.engine.scheduler`), runs the model (:mod:`owngpt.engine.outcome`), chooses a token for every text that is
due, and hands on what it means (:mod:`owngpt.engine.open_texts`). A fault inside one request ends that request; the others do
not notice.
"""

from __future__ import annotations

import threading
import time
import warnings
from pathlib import Path

import torch

from owngpt.engine import outcome
from owngpt.engine.admission import checked_prompt
from owngpt.engine.blocks import BlockPool
from owngpt.engine.counts import Counts, EngineStats
from owngpt.engine.intake import Intake
from owngpt.engine.open_texts import OpenTexts
from owngpt.engine.request import Request, Stream
from owngpt.engine.runner import Runner
from owngpt.engine.sampling import Sampler
from owngpt.engine.scheduler import Scheduler, Task, Work
from owngpt.engine.speculation import Speculation
from owngpt.errors import EngineError, UsageError
from owngpt.formats.peft import load_adapter
from owngpt.text.tokenizer import Tokenizer

MOST_WAITING = 4096
"""Texts that may wait; more are refused, so that a flood cannot fill the memory."""


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
            grain=runner.grain,
        )
        self._counts = Counts()
        self._intake = Intake(tokenizer, context_length)
        self._texts = OpenTexts(runner, self._scheduler, self._counts, context_length)
        self._texts.speculation = speculation
        self._adapters: dict[str, object] = {}  # name → a mark of this very loading
        self._loading = threading.Lock()
        self._lock = threading.Condition()
        self._new: list[Task] = []
        self._cancelled: set[Stream] = set()
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
        samplers = self._intake.samplers(request, len(prompt))
        stream = Stream(request.config.num_return_sequences, lambda: self._cancel(stream))
        with self._lock:
            if self._closing:
                raise EngineError("the engine is closed")
            self._take(request, stream, prompt, samplers)
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
            self._texts.speculation = speculation

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
                users = {task.stream for task in self._texts if task.request.adapter == name}
                if users:
                    raise UsageError(
                        f"{len(users)} requests use the adapter {name!r}; wait for them or cancel them, then unload it"
                    )
                del self._adapters[name]
            self.runner.unload_adapter(name)

    def stats(self) -> EngineStats:
        """What was done and what is going on."""
        with self._lock:
            return EngineStats.of(self._counts, self._scheduler, len(self._new))

    def close(self) -> None:
        """End the thread; what still runs is cancelled."""
        with self._lock:
            self._closing = True
            self._lock.notify()
        if self._thread is not None and self._thread is not threading.current_thread():  # it may be what lets the engine go
            self._thread.join()

    def check(self) -> None:
        """Our own invariants, between two steps: no block is lost or given twice."""
        with self._lock:
            self._scheduler.check()

    # Submitting

    def _take(self, request: Request, stream: Stream, prompt: list[int], samplers: list[Sampler]) -> None:
        # Where a token's rotation depends on its text's length, texts of different requests share nothing.
        mark = object() if self.runner.config.turns_by_length else self._adapter_mark(request.adapter)
        if len(self._scheduler.waiting) + len(self._new) + len(samplers) > MOST_WAITING:
            raise UsageError(f"{MOST_WAITING} texts are waiting already; try again when some have finished")
        self._arrivals += 1
        self._counts.requests += 1
        self._counts.prompt_tokens += len(prompt)
        for index, sampler in enumerate(samplers):
            task = self._intake.task(request, stream, index, sampler, prompt, self._arrivals, mark)
            self._texts.add(task, sampler)
            self._new.append(task)

    def _adapter_mark(self, name: str | None) -> object:
        if name is None:
            return None
        if name not in self._adapters:
            loaded = f"loaded are: {', '.join(self._adapters)}" if self._adapters else "none is loaded"
            raise UsageError(f"there is no adapter {name!r}; {loaded}")
        return self._adapters[name]

    def _cancel(self, stream: Stream) -> None:
        with self._lock:
            self._cancelled.add(stream)
            self._lock.notify()

    # The thread

    def _work(self) -> None:
        try:
            self._step_until_closed()
        except Exception as error:  # a fault of ours: nobody may wait for ever for what it ends
            ending = EngineError(
                f"the engine stopped by a fault of its own: {error or type(error).__name__}; open the model again"
            )
            ending.__cause__ = error
            with self._lock:
                self._closing = True
                self._texts.tell_all(ending)

    def _step_until_closed(self) -> None:
        while True:
            with self._lock:
                self._receive()
                while self._scheduler.idle and not self._closing:
                    self._lock.wait()
                    self._receive()
                if self._closing:
                    self._texts.fail_all(EngineError("the engine was closed before the text was finished"))
                    return
                plan, speculation = self._scheduler.plan(), self._texts.speculation
            started = time.perf_counter()
            plan = plan if speculation is None else self._with_guesses(plan, speculation)
            found = outcome.run(self.runner, plan)
            with self._lock:
                written = self._texts.go_on(found)
                seconds = time.perf_counter() - started
                self._scheduler.took(plan, seconds)
                if speculation is not None and speculation is self._texts.speculation:
                    speculation.took(plan, written, seconds)

    def _receive(self) -> None:
        """New tasks in, cancelled ones out."""
        for task in self._new:
            self._scheduler.add(task)
        self._new.clear()
        cancelled, self._cancelled = self._cancelled, set()  # a stream that is let go may cancel itself in between
        for stream in cancelled:
            self._texts.cancel(stream)

    def _with_guesses(self, plan: list[Work], speculation: Speculation) -> list[Work]:
        try:
            with torch.inference_mode():
                guesses = speculation.guess(plan, self.context_length)
        except Exception as error:  # the texts do not need it
            warnings.warn(f"speculation is off: {error}", RuntimeWarning, stacklevel=1)
            self.guess_with(None)
            return plan
        if not guesses:
            return plan
        with self._lock:
            plan = [self._scheduler.with_guesses(work, guesses.get(work.task, ())) for work in plan]
            self._counts.guessed_tokens += sum(len(work.guessed) for work in plan)
        return plan
