"""The loop: batches in, steps, validation, samples, checkpoints, and a way out of everything that goes wrong.

It knows nothing of the model's maths (that is :mod:`owngpt.train.step`) and nothing of tokenizers or generation (samples
come from a function that is handed in).
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from owngpt.data.batches import Batch, BatchStream
from owngpt.errors import CheckpointError, TrainingDivergedError, UsageError
from owngpt.train import checkpoint
from owngpt.train.average import WeightAverage
from owngpt.train.course import Course, TrainResult
from owngpt.train.display import Display, make_display
from owngpt.train.interrupts import Interrupts, TrainingInterrupted
from owngpt.train.lock import RunLock
from owngpt.train.pace import Pace
from owngpt.train.parallel import Ranks
from owngpt.train.random_state import random_state, set_random_state
from owngpt.train.recorder import Moment, Recorder, Yardsticks
from owngpt.train.samples import SampleFunction, Samples
from owngpt.train.schedule import learning_rate_scale
from owngpt.train.stability import SpikeDetector
from owngpt.train.step import StepResult, TrainModule
from owngpt.train.validation import Best, Validation

KEPT_CHECKPOINTS = 2
BAD_STEPS = 3
"""In a row: then back to the last checkpoint."""
ROLLBACK_RATE = 0.5
"""Factor on the learning rate after going back."""
SAVE_SHARE = 0.04
"""Of the time that saving checkpoints may take."""
SAVE_BYTES_PER_SECOND = 2.5e8
"""Expected of the first checkpoint."""
AS_GOOD = 1.01
"""A mean of several states whose held-out loss is this times the least of all is preferred: that one is also the luckiest."""


class Trainer:
    """Trains until the course is run, through crashes, interruptions and bad steps.

    ``folder`` (``OUT/run``) receives ``metrics.jsonl``, ``samples.jsonl``, ``tensorboard/``, ``checkpoints/`` and ``lock``.
    With a fixed number of steps the result depends on seed and data alone: a run that was killed and resumed any number
    of times ends with the same bits.
    """

    def __init__(
        self, module: TrainModule, batches: BatchStream, validation_batches: Sequence[Batch], course: Course, folder: Path,
        *, yardsticks: Yardsticks, identity: dict[str, str] | None = None, on_sample: SampleFunction | None = None,
        display: Display | None = None, clock: Callable[[], float] = time.monotonic, lock: RunLock | None = None,
        ranks: Ranks | None = None, verb: str = "train",
    ) -> None:  # fmt: skip
        """:param identity: names to hashes of what the run is made of; a checkpoint with another identity is not resumed.

        :param on_sample: lets the model write; returns records with at least ``prompt`` and ``text``.
        :param lock: of ``folder``, where the caller holds it for longer than the training; it is not given back here.
        :param ranks: the other processes of the run, which this one leads.
        :param clock: monotonic seconds.
        :param verb: of the command that goes on with the run.
        """
        self.module, self.batches, self.course, self.folder = module, batches, course, folder
        self.identity = identity or {}
        self.checkpoints = folder / "checkpoints"
        self.step = 0
        self.tokens = 0
        self.best = Best()
        self._average = WeightAverage()
        self._clock = clock
        self._verb = verb
        self._pace = Pace(steps=course.steps, budget_seconds=course.budget_seconds, clock=clock, step_limit=course.step_limit)
        interval, budget = course.evaluation_interval, course.budget_seconds
        self._validation = Validation(
            validation_batches, interval=interval, budget_seconds=budget, time_share=course.validation_share
        )
        self._since_best = 0
        self._spikes = SpikeDetector()
        self._recorder = Recorder(folder, yardsticks, display or make_display(), steps=course.steps)
        self._samples = Samples(on_sample, budget_seconds=budget)
        self._interrupts = Interrupts()
        self._lock = lock or RunLock(folder)
        self._lock_is_lent = lock is not None
        self._ranks = ranks
        self._last = StepResult(math.nan, math.nan, True, 0)
        self._positions = 0
        """Tokens that this process read in the last step."""
        self._validated: tuple[int, float] = (-1, math.nan)
        self._rate_scale = 0.0
        self._bad_steps = 0
        self._rollbacks = 0
        self._saved_at = 0.0
        self._save_cost = 0.0
        self._restored_elapsed = 0.0

    def restore(self, path: Path | None = None) -> int | None:
        """Continues from a checkpoint: the newest whole one, or the one named. Returns its step, None when there is none.

        :raises CheckpointError: the named one is damaged, or the checkpoint is of another run.
        :raises FolderBusyError: another process trains in this folder.
        """
        self._take_lock()
        try:
            if path is None:
                path, damaged = checkpoint.find_newest(self.checkpoints)
                for line in damaged:
                    self._recorder.display.warn(line)
                if path is None:
                    return None
                found = checkpoint.load(path, verified=True)
            else:
                found = checkpoint.load(path)
            self._take_over(found)
        except BaseException:
            self._give_lock_back()
            raise
        return self.step

    def run(self) -> TrainResult:
        """Trains to the end of the course. The model then has the weights that did best on held-out text, or a mean of several.

        :raises TrainingInterrupted: SIGINT or SIGTERM came; everything is saved.
        :raises TrainingDivergedError: steps stayed bad after going back once.
        :raises StorageError: the disk refused; earlier checkpoints are intact.
        :raises FolderBusyError: another process trains in this folder.
        :raises UsageError: the folder holds checkpoints and :meth:`restore` was not called.
        """
        self._take_lock()
        try:
            self._begin()
            with self._interrupts:
                while not self._is_at_end():
                    self._advance()
                return self._finish()
        finally:
            self._recorder.close()
            self._give_lock_back()
            self.module.let_go()  # whatever comes next measures, writes or answers

    def _take_lock(self) -> None:
        if not self._lock.held:
            self._lock.acquire()

    def _give_lock_back(self) -> None:
        if not self._lock_is_lent:
            self._lock.release()

    def _begin(self) -> None:
        checkpoint.clear_leftovers(self.checkpoints)
        existing = checkpoint.checkpoints(self.checkpoints)
        if not self.step and existing and checkpoint.find_newest(self.checkpoints)[0]:
            last = checkpoint.step_of(existing[-1])
            raise UsageError(f"{self.folder} holds a run up to step {last}; use --resume, or another output folder")
        if self._ranks:
            self._ranks.share_state(self.module, self.batches)
        self._pace.begin(self._restored_elapsed)
        self._recorder.restart_after(self.step)
        self._saved_at = self._pace.elapsed
        self._save_cost = self._save_cost or self._state_bytes() / SAVE_BYTES_PER_SECOND

    def _advance(self) -> None:
        """One step and whatever is due after it."""
        self._take_step()
        fraction = self._pace.fraction(self.step)
        self._recorder.show(self.step, fraction, self._pace.seconds_left(self.step))
        if self._is_at_end():
            return  # what is due at the end is done once, by _finish
        if self._validation.is_due(self.step, fraction, self._token_seconds()):
            self._validate(fraction)
        if self._interrupts.requested:
            self._leave()  # after the validation: a resumed run would not come back to it
        if self._samples.is_due(fraction, self._pace.total_seconds(self.step)):
            self._recorder.samples(self._moment(), self._samples.run(self.module.model, self._clock, fraction))
        if self._pace.elapsed - self._saved_at >= self._save_interval() and self._is_sound():
            self._save()

    def _take_step(self) -> None:
        start = self._clock()
        course = self.course
        progress = self._pace.progress(self.step, course.warmup)
        scale = learning_rate_scale(progress, warmup=course.warmup, decay=course.decay, floor=course.floor)
        self._rate_scale = scale * ROLLBACK_RATE**self._rollbacks
        loss_limit, norm_limit = self._spikes.limits()
        batches = [self.batches.next() for _ in range(course.accumulation)]
        if self._ranks:
            self._ranks.announce_step(self._rate_scale, loss_limit, norm_limit)
        self._positions = sum(batch.inputs.numel() for batch in batches)
        result = self.module.run(batches, self._rate_scale, loss_limit=loss_limit, norm_limit=norm_limit)
        seconds = self._clock() - start
        self.step += 1
        self.tokens += result.tokens
        self._last = result
        self._pace.step_took(seconds)
        self._pace.reserve = self._reserve()
        if result.skipped:
            self._refuse(result)
            return
        self._bad_steps = 0
        self._spikes.record(result.loss, result.gradient_norm)
        self._recorder.step_taken(result.loss, result.tokens, seconds, result.metrics)
        learning_rate = self._rate_scale * course.learning_rate
        self._recorder.training_line(self._moment(), learning_rate, result.gradient_norm, last=self._is_at_end())

    def _refuse(self, result: StepResult) -> None:
        """A bad step was not taken: says so, and goes back when there were several in a row."""
        self._bad_steps += 1
        facts = f"loss {result.loss:.4g}, gradient norm {result.gradient_norm:.4g}"
        message = f"step {self.step} skipped: {facts}"
        self._recorder.event(self._moment(), "skipped", message, loss=result.loss, gradient_norm=result.gradient_norm)
        if self._bad_steps >= BAD_STEPS:
            self._roll_back(facts)

    def _roll_back(self, facts: str) -> None:
        """Back to the last checkpoint's weights, on to other data, at half of the learning rate; the second time it is over."""
        path, _ = checkpoint.find_newest(self.checkpoints)
        if path is None or self._rollbacks:
            raise TrainingDivergedError(self._diagnosis(facts, path))
        diverged_at, position, elapsed = self.step, self.batches.state_dict(), self._pace.elapsed
        self._take_over(checkpoint.load(path, verified=True))
        self.batches.load_state_dict(position)
        if self._ranks:
            self._ranks.share_state(self.module, self.batches)
        self._pace.begin(elapsed)
        self._rollbacks += 1
        self._recorder.restart_after(self.step)
        message = (
            f"{BAD_STEPS} bad steps in a row at step {diverged_at} ({facts}): back to step {self.step}, past that data, "
            f"with {ROLLBACK_RATE:g} times the learning rate"
        )
        self._recorder.event(self._moment(), "rolled_back", message, diverged_at=diverged_at)
        self._save()

    def _diagnosis(self, facts: str, path: Path | None) -> str:
        rate = self._rate_scale * self.course.learning_rate
        before = "again after going back to a checkpoint" if self._rollbacks else "before there was a checkpoint to go back to"
        kept = f"; the last good checkpoint is {path}" if path else ""
        return (
            f"training diverged: {self._bad_steps} bad steps in a row at step {self.step} ({facts}), {before}. "
            f"The learning rate was {rate:.3g}; {self._spikes.recent()}. "
            f"Train with a lower learning rate or a longer warm-up{kept}"
        )

    def _validate(self, fraction: float) -> None:
        """Scores held-out text and remembers the weights if they are the best."""
        if self._validated[0] == self.step:
            return
        loss = self._validation.run(self.module.validate, self._clock, fraction, self._token_seconds())
        self._validated = (self.step, loss)
        if self.course.averages_from is not None and fraction >= self.course.averages_from and math.isfinite(loss):
            self._average.add(self.module.weights())
        is_best = loss < self.best.loss
        self._since_best = 0 if is_best else self._since_best + 1
        if is_best:
            # At the very end the best weights are the model's own: no copy.
            self.best = Best(self.step, loss, None if self._is_at_end() else self.module.weights())
        self._recorder.validation_line(
            self._moment(), loss, best=is_best, seconds=self._validation.cost, metrics=self.module.validation_metrics
        )
        if self._has_lost_patience():
            message = f"the held-out loss has not fallen {self._since_best} times in a row: the run ends here"
            self._recorder.event(self._moment(), "stopped_early", message)

    def _finish(self) -> TrainResult:
        """The last validation and checkpoint; the model gets its best weights, or a mean."""
        if self._interrupts.requested:
            self._leave()
        if self._validation.is_possible():
            self._validate(1.0)
        if self._bad_steps >= self.step or (self._bad_steps and not math.isfinite(self.best.loss)):
            raise TrainingDivergedError(self._diagnosis(f"loss {self._last.loss:.4g}", None))
        if self._is_sound():
            self._save()
        loss, averaged = self._keep_best()
        bits = None if loss is None else self._recorder.yardsticks.validation_bits(loss)
        best_step = self.step if loss is None else self.best.step
        return TrainResult(
            self.step, self.tokens, self.batches.epoch, self._pace.elapsed, self._last.loss, best_step, loss, bits, averaged
        )

    def _keep_best(self) -> tuple[float | None, int]:
        """(held-out loss of the weights that the module now gets, the number of states that they are the mean of or 0)"""
        average = self._average
        if average.count > 1:
            own = self.module.weights() if self.best.step == self.step else None
            self.module.set_weights(average.weights)
            loss = self._validation.run(self.module.validate, self._clock, 1.0, self._token_seconds())
            is_kept = loss <= AS_GOOD * self.best.loss
            message = f"mean of the last {average.count} looks {'kept' if is_kept else 'not kept'}: held-out loss {loss:.4f}"
            self._recorder.event(self._moment(), "averaged", message, is_usual=True, loss=loss, kept=is_kept)
            if is_kept:
                return loss, average.count
            if own is not None:
                self.module.set_weights(own)
        if self.best.weights is not None and self.best.step != self.step:
            self.module.set_weights(self.best.weights)
        return (self.best.loss if math.isfinite(self.best.loss) else None), 0

    def _leave(self) -> None:
        """After SIGINT or SIGTERM: saves and raises."""
        self._recorder.display.warn("stopping: saving a checkpoint first (press Ctrl-C again to leave at once, without it)")
        kept = f"saved {self._save()}" if self._is_sound() else "the last steps were bad, so the checkpoint before them is kept"
        launcher = f"torchrun --nproc-per-node {self._ranks.size} -m " if self._ranks else ""
        command = f"{launcher}owngpt {self._verb} --resume -o {shlex.quote(str(self.folder.parent))}"
        raise TrainingInterrupted(f"interrupted at step {self.step}; {kept}. Go on with: {command}")

    def _save(self) -> Path:
        """Writes a checkpoint, and deletes the older ones once it is whole."""
        start = self._clock()
        self._recorder.sync()
        path = checkpoint.save(self.checkpoints, self.step, self._state(), self._meta())
        checkpoint.prune(self.checkpoints, newest=self.step, keep=KEPT_CHECKPOINTS)
        self._save_cost = self._clock() - start
        self._saved_at = self._pace.elapsed
        return path

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        state |= {f"random.{name}": value for name, value in random_state(self.module.device).items()}
        if self.best.weights is not None and self.best.step != self.step:
            state |= {f"best.{name}": value for name, value in self.best.weights.items()}
        return state | {f"average.{name}": value for name, value in self._average.weights.items()}

    def _meta(self) -> dict[str, Any]:
        return {
            "identity": self.identity,
            "tokens": self.tokens,
            "elapsed_seconds": self._pace.elapsed,
            "batches": self.batches.state_dict(),
            "validation": self._validation.state_dict(),
            "best": {"step": self.best.step, "loss": self.best.loss, "since": self._since_best},
            "averaged": self._average.count,
            "spikes": self._spikes.state_dict(),
            "bad_steps": self._bad_steps,
            "rollbacks": self._rollbacks,
            "samples": self._samples.state_dict(),
            "validated": list(self._validated),
            "last_step": {"loss": self._last.loss, "gradient_norm": self._last.gradient_norm, "tokens": self._last.tokens},
            "save_cost": self._save_cost,
        }

    def _take_over(self, found: checkpoint.Checkpoint) -> None:
        """Sets everything to what a checkpoint holds."""
        meta = found.meta
        self._check_identity(found.path, meta["identity"])
        self.module.load_state_dict(_under("module.", found.state))
        self.batches.load_state_dict(meta["batches"])
        set_random_state(_under("random.", found.state), self.module.device)
        self.step, self.tokens = found.step, meta["tokens"]
        self.best = Best(meta["best"]["step"], meta["best"]["loss"])
        self._since_best = meta["best"].get("since", 0)
        if self.best.step == self.step:
            self.best.weights = self.module.weights()
        elif self.best.step >= 0:
            self.best.weights = {name: value.clone() for name, value in _under("best.", found.state).items()}
        self._average.load(_under("average.", found.state), meta.get("averaged", 0), self.module.device)
        self._validated = tuple(meta["validated"])
        self._last = StepResult(skipped=False, **meta["last_step"])
        self._validation.load_state_dict(meta["validation"])
        self._spikes.load_state_dict(meta["spikes"])
        self._bad_steps, self._rollbacks = meta["bad_steps"], meta["rollbacks"]
        self._samples.load_state_dict(meta["samples"])
        self._save_cost = meta["save_cost"]
        self._restored_elapsed = meta["elapsed_seconds"]

    def _check_identity(self, path: Path, identity: dict[str, str]) -> None:
        differing = sorted(name for name in {*identity, *self.identity} if identity.get(name) != self.identity.get(name))
        if differing:
            names = ", ".join(differing)
            raise CheckpointError(f"{path} is of another run: {names} differ; resume with the same settings and text")

    def _moment(self) -> Moment:
        return Moment(self.step, self.tokens, self.batches.epoch, self._pace.elapsed)

    def _is_at_end(self) -> bool:
        return self._pace.is_over(self.step) or self._has_lost_patience()

    def _has_lost_patience(self) -> bool:
        patience = self.course.patience
        return patience is not None and self._since_best >= patience

    def _is_sound(self) -> bool:
        """Whether this state is one to come back to: a step may have broken the weights before the next one shows it."""
        if self._bad_steps:
            return False
        norms = torch._foreach_norm(self.module.parameters())
        return bool(torch.stack([norm.float() for norm in norms]).isfinite().all())

    def _token_seconds(self) -> float:
        return self._pace.step_seconds / max(self._positions or self._last.tokens, 1)

    def _save_interval(self) -> float:
        wanted = self.course.checkpoint_seconds
        return max(wanted, self._save_cost / SAVE_SHARE) if wanted else 0.0

    def _reserve(self) -> float:
        """Seconds that follow the last step: validation, once more of the mean, and checkpoint."""
        return self._validation.cost * (1 if self.course.averages_from is None else 2) + self._save_cost

    def _state_bytes(self) -> int:
        return sum(value.numel() * value.element_size() for value in self._state().values() if isinstance(value, torch.Tensor))


def _under(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
