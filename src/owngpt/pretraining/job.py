"""One run of the main job, from the sources to the model folder."""

from __future__ import annotations

import json
import math
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from owngpt.config.files import atomic_write_text
from owngpt.config.run_record import RUN_FILE, RunRecord
from owngpt.config.training import DEFAULT_MINUTES, TrainConfig
from owngpt.errors import UsageError
from owngpt.evaluate.bits import score_text
from owngpt.families import family_for
from owngpt.formats.base import BaseModel
from owngpt.formats.card import model_card
from owngpt.formats.folder import save_model
from owngpt.kernels.ceiling import matmul_ceiling
from owngpt.kernels.machine import describe_machine
from owngpt.model.gpt import GPT
from owngpt.pretraining.parts import build_batches, build_module, device_of, held_out_batches, plan_of
from owngpt.pretraining.samples import openings, write_samples
from owngpt.pretraining.text import Text, kept_text, prepare_text
from owngpt.train.curve import draw_curve
from owngpt.train.display import Display, make_display, timed
from owngpt.train.lock import RunLock
from owngpt.train.output import RUN, check_output, removed_on_failure
from owngpt.train.parallel import Ranks
from owngpt.train.planner import Plan, TextFacts, compute_type, make_plan
from owngpt.train.recorder import Yardsticks
from owngpt.train.step import TrainModule
from owngpt.train.throughput import step_flops
from owngpt.train.trainer import Trainer

VOCABULARY_MULTIPLE = 32
"""The embedding's rows are rounded up to it, which matrix units like."""
SCORE_SHARE = 0.02
"""Of the budget for the final score."""
SAVE_SECONDS = 4.0
"""Of the budget for samples, the model folder and the picture."""


@dataclass(frozen=True)
class TrainedModel:
    """What :func:`train` made."""

    output: Path
    score: dict[str, Any]
    """bits_per_byte, perplexity, loss, tokens, bytes … on text that was held out; empty after a dry run."""
    samples: list[dict[str, Any]]
    """``prompt`` and ``text`` of a few continuations of held-out text."""
    plan: dict[str, Any]
    training: dict[str, Any]
    """Steps, tokens, epochs, seconds and losses of the run itself."""
    seconds: float
    """Wall-clock time of everything."""
    rank: int = 0
    """Of this process among those that train together; only rank 0 knows score and samples."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "output": str(self.output)}


class Job:
    """Settings, data and plan lie under ``run/``, so that a resumed run takes the same way."""

    def __init__(
        self, folder: Path, sources: list[str], settings: TrainConfig, began: float, *, quiet: bool, ranks: Ranks | None = None,
        record: RunRecord | None = None,
    ) -> None:  # fmt: skip
        """:param record: of the interrupted run that this one goes on with."""
        self.folder, self.sources, self.settings, self.began = folder, sources, settings, began
        self.run_folder = folder / RUN
        self.quiet, self.ranks = quiet, ranks
        self.display: Display = make_display(quiet=quiet)
        self.device = device_of(ranks)
        self.record = record
        self.base = BaseModel.of(settings.from_model) if settings.from_model else None
        self.is_resumed = record is not None
        self.checkpoint: Path | None = None
        self.is_named = True
        """Whether the person chose the folder."""

    @property
    def budget(self) -> float | None:
        """Seconds for everything, None when steps or tokens decide."""
        settings = self.settings
        if settings.steps or settings.tokens:
            return None
        return 60.0 * (settings.minutes or DEFAULT_MINUTES)

    def remaining(self) -> float | None:
        """Seconds of the budget that are left."""
        return None if self.budget is None else self.budget - (time.monotonic() - self.began)

    def plan_only(self) -> TrainedModel:
        """Everything up to the plan; what that takes on disk is elsewhere and removed."""
        plan = plan_of(self.record, self.run_folder) if self.record else None
        if plan is None:
            with tempfile.TemporaryDirectory(prefix="owngpt-dry-run-") as scratch:
                plan = self._plan(self._prepare(Path(scratch)))
        return TrainedModel(self.folder, {}, [], plan.to_dict(), {}, time.monotonic() - self.began)

    def run(self) -> TrainedModel:
        """The whole job, under one lock from the first file to the last."""
        with removed_on_failure(self.folder, self.run_folder / RUN_FILE), RunLock(self.run_folder) as lock:
            if not self.is_resumed:
                check_output(self.folder)  # again: another run may have taken the folder before the lock was ours
            if not self.is_named:
                self.display.say(f"the model will be in {self.folder}")
            text = self._text()
            plan = self._agreed_plan(text)
            if self.ranks:
                self.ranks.announce_ready(self.run_folder)
            module = build_module(plan, self.device, self.ranks, self.base)
            result = self._trainer(plan, module, text, lock).run()
            if self.ranks:
                self.ranks.end()
            return self._finish(plan, module, text, result.to_dict())

    # --- text and plan ---

    def _text(self) -> Text:
        kept = kept_text(self.run_folder, self.display.say) if self.is_resumed else None
        return kept or self._prepare(self.run_folder)

    def _prepare(self, run_folder: Path) -> Text:
        return prepare_text(
            self.sources, self.settings, run_folder, output=self.folder, budget=self.budget, remaining=self.remaining,
            say=self.display.say, quiet=self.quiet,
        )  # fmt: skip

    def _agreed_plan(self, text: Text) -> Plan:
        """The interrupted run's plan, or a new one, which is written down with everything that led to it."""
        if self.record:
            plan, size = plan_of(self.record, self.run_folder), self.ranks.size if self.ranks else 1
            if plan.ranks != size:
                raise UsageError(
                    f"this run was begun by {plan.ranks} ranks and would go on with {size}; "
                    f"use torchrun --nproc-per-node {plan.ranks} -m owngpt train --resume"
                )
            return plan
        plan = self._plan(text)
        trains = self.base is None and self.settings.tokenizer in (None, "bpe", "char")
        trained = text.tokenizer.vocab_size if trains else None
        record = RunRecord(self.sources, asdict(self.settings), plan.to_dict(), trained)
        self.record = record.write(self.run_folder / RUN_FILE)
        return plan

    def _plan(self, text: Text) -> Plan:
        rows = -(-text.tokenizer.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        rows = self.base.config.vocab_size if self.base else rows
        facts = TextFacts(text.prepared.train.byte_count, text.prepared.train.token_count, rows)
        dtype = compute_type(self.device, describe_machine().features)
        remaining = self.remaining()
        if remaining is not None:
            remaining -= self._reserve()
            if remaining < 1.0:
                raise UsageError(
                    f"after preparing the text {max(remaining, 0):.0f} s of {self.budget:.0f} are left to train in; "
                    f"give at least --minutes {(time.monotonic() - self.began + self._reserve() + 10) / 60:.1f}"
                )
        ranks = self.ranks.size if self.ranks else 1
        base = self.base.config if self.base else None
        plan = make_plan(self.settings, facts, seconds=remaining, dtype=dtype, device=self.device, ranks=ranks, base=base)
        family_for(base or plan.model)  # a shape that no model folder can hold must not be found out after training
        for line in ("plan:", *(f"  {reason}" for reason in plan.reasons)):
            self.display.say(line)
        return plan

    def _reserve(self) -> float:
        """Seconds kept for scoring, samples and saving."""
        assert self.budget is not None
        return SAVE_SECONDS + SCORE_SHARE * self.budget

    # --- training ---

    def _trainer(self, plan: Plan, module: TrainModule, text: Text, lock: RunLock) -> Trainer:
        assert self.record is not None
        tokenizer, prepared, corpus = text.tokenizer, text.prepared, text.corpus
        course, dtype = plan.course, getattr(torch, plan.dtype)
        if self.budget is not None and not self.is_resumed:
            # Measured again: what the plan itself took must not come on top.
            course = replace(course, budget_seconds=max(1.0, (self.remaining() or 0.0) - self._reserve()))
        flops = step_flops(plan.model, plan.batch_size) / (plan.batch_size * plan.model.context_length)
        ceiling = matmul_ceiling(dtype, 0.2, device=self.device.type)
        ceiling = ceiling * plan.ranks if ceiling else ceiling
        prompts = openings(corpus, tokenizer)
        trainer = Trainer(
            module, build_batches(plan, prepared, self.ranks), held_out_batches(plan, prepared), course, self.run_folder,
            yardsticks=Yardsticks(prepared.train.bytes_per_token, prepared.validation.bytes_per_token, flops, ceiling),
            identity={"text": corpus.fingerprint, "tokenizer": tokenizer.fingerprint, "plan": self.record.plan_hash()},
            display=self.display, on_sample=lambda network: write_samples(network, tokenizer, prompts, plan.seed),
            lock=lock, ranks=self.ranks,
        )  # fmt: skip
        if self.is_resumed and trainer.restore(self.checkpoint) is None:
            self.display.warn("there is no whole checkpoint to go on from: the run begins again")
        return trainer

    # --- end ---

    def _finish(self, plan: Plan, module: TrainModule, text: Text, training: dict[str, Any]) -> TrainedModel:
        network, tokenizer, corpus, say = module.model, text.tokenizer, text.corpus, self.display.say
        score: dict[str, Any] = {}
        if corpus.validation.documents:
            with timed("scoring on held-out text", say):
                texts = corpus.validation.sample(_score_bytes(plan, self._score_seconds()))
                score = score_text(network, tokenizer, texts).to_dict()
        with timed("writing samples", say):
            samples = write_samples(network, tokenizer, openings(corpus, tokenizer), plan.seed)
        with timed("saving", say):
            self._save(plan, module, text, score, training, samples)
        return TrainedModel(self.folder, score, samples, plan.to_dict(), training, time.monotonic() - self.began)

    def _score_seconds(self) -> float | None:
        """What the final score may take; less when the run came late to its end."""
        if self.budget is None:
            return None
        return max(0.3, min(self.budget * SCORE_SHARE, (self.remaining() or 0.0) - SAVE_SECONDS))

    def _save(
        self, plan: Plan, module: TrainModule, text: Text, score: dict[str, Any], training: dict[str, Any],
        samples: list[dict[str, Any]],
    ) -> None:  # fmt: skip
        """The model folder, its card and the picture of the run."""
        final = self.base.finish(module.weights()) if self.base else GPT(plan.model)
        if self.base is None:
            final.load_state_dict(module.weights())
        name, report = self.folder.resolve().name, text.corpus.report.to_dict()
        card = model_card(
            name=name, config=final.config, data=report, plan=_measured(plan.to_dict()), score=score, training=training,
            samples=samples, tokenizer=text.tokenizer,
        )  # fmt: skip
        layout, generation = (self.base.layout, self.base.generation()) if self.base else (None, None)
        save_model(self.folder, final, text.tokenizer, card=card, generation=generation, family=layout)
        atomic_write_text(self.run_folder / "data.json", json.dumps(report, indent=2, ensure_ascii=False))
        draw_curve(self.run_folder / "metrics.jsonl", self.folder / "loss.png", title=name)


def _score_bytes(plan: Plan, seconds: float | None) -> int:
    """Held-out bytes that can be scored in the time; a forward pass is a third of a step, and the window visits tokens twice."""
    if seconds is None or not math.isfinite(plan.tokens_per_second):
        return 2**20
    return int(min(2**20, max(2**14, seconds * plan.tokens_per_second / plan.ranks * 1.2 * 2.5)))


def _measured(values: dict[str, Any]) -> dict[str, Any]:
    """Without the numbers that were not measured in this run."""
    return {name: value for name, value in values.items() if not (isinstance(value, float) and not math.isfinite(value))}
