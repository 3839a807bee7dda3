"""One fine-tuning, from people's rows to an adapter or a model, and a report of what it changed."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from owngpt.config.finetuning import FinetuneConfig
from owngpt.config.run_record import RUN_FILE, RunRecord
from owngpt.data.files import MANIFEST
from owngpt.engine.quality import file_key
from owngpt.finetune import material as materials
from owngpt.finetune.adapter.lora import check_attachable
from owngpt.finetune.adapter.low_rank import typical_row_length
from owngpt.finetune.card import card
from owngpt.finetune.clock import Clock, reference_seconds
from owngpt.finetune.feed import Feed, References
from owngpt.finetune.material import Material
from owngpt.finetune.objectives.classification import attach_head
from owngpt.finetune.output import recommend, save, save_card
from owngpt.finetune.plan import FinetunePlan, Recipe
from owngpt.finetune.planner import (
    Facts,
    budget_seconds,
    context_limit,
    lora_settings,
    make_plan,
    make_recipe,
    most_examples,
    replay_share,
    shape_of,
)
from owngpt.finetune.rehearsal.replay import replay_store
from owngpt.finetune.report.forgetting import known_languages
from owngpt.finetune.report.measure import Measurement, measure
from owngpt.finetune.report.penalty import PENALTIES
from owngpt.finetune.report.write import Report, write_report
from owngpt.finetune.result import FinetunedModel
from owngpt.finetune.sequences.batches import ReplaySource
from owngpt.finetune.sequences.store import ExampleStore
from owngpt.finetune.strength import Strength, choose
from owngpt.finetune.trainee import Trainee, open_base
from owngpt.formats.base import BaseModel
from owngpt.formats.folder import load_family
from owngpt.kernels.machine import describe_machine
from owngpt.model.gpt import GPT
from owngpt.model.linear import Linear
from owngpt.text.tokenizer import Tokenizer
from owngpt.train.display import Display, make_display, timed
from owngpt.train.lock import RunLock
from owngpt.train.output import CHECKPOINTS, RUN, check_output, removed_on_failure
from owngpt.train.planner import compute_type
from owngpt.train.recorder import Yardsticks
from owngpt.train.trainer import Trainer

LEAST_REPLAYED, MOST_REPLAYED, REPLAYED_PASSES = 2_000, 20_000, 5
"""Tokens of general text; at most as many as are read in some passes over the examples."""
WITH_REFERENCE = ("dpo", "ipo")
BEFORE = "before.json"


class Job:
    """Settings, examples and plan lie under ``run/``, so that a resumed run takes the same way."""

    def __init__(
        self, folder: Path, model: str, sources: list[str], settings: FinetuneConfig, began: float, *, quiet: bool,
        record: RunRecord | None = None,
    ) -> None:  # fmt: skip
        """:param record: of the interrupted run that this one goes on with."""
        self.folder, self.model, self.sources, self.settings = folder, model, sources, settings
        self.clock = Clock(began, budget_seconds(settings))
        self.run_folder = folder / RUN
        self.record = record
        self.display: Display = make_display(quiet=quiet)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.base = BaseModel.of(model)
        self.checkpoint: Path | None = None
        self.is_named = True
        """Whether the person chose the folder."""

    def plan_only(self) -> FinetunedModel:
        """Everything up to the plan; what that takes on disk is elsewhere and removed."""
        with tempfile.TemporaryDirectory(prefix="owngpt-dry-run-") as scratch:
            network, tokenizer = self._open()
            material = self._prepare(Path(scratch), tokenizer)
            plan, _ = self._new_plan(material, self._with_head(network, material), self.clock.measuring or 0.0)
            return self._result(plan, material.facts)

    def run(self) -> FinetunedModel:
        """The whole job, under one lock from the first file to the last."""
        with removed_on_failure(self.folder, self.run_folder / RUN_FILE), RunLock(self.run_folder) as lock:
            if self.record is None:
                check_output(self.folder)  # again: another run may have taken the folder before the lock was ours
            if not self.is_named:
                self.display.say(f"the result will be in {self.folder}")
            network, tokenizer = self._open()
            material = (materials.kept(self._data) if self.record else None) or self._prepare(self._data, tokenizer)
            network = self._with_head(network, material)
            replay = self._replay(material, network, tokenizer)
            before = self._before(material, network)
            plan, trainee = self._agreed_plan(material, network, before.seconds)
            trainer = self._trainer(plan, trainee, material, replay, before.seconds, lock)
            return self._finish(plan, trainee, material, before, trainer.run().to_dict())

    # --- examples and plan ---

    @property
    def _data(self) -> Path:
        return self.run_folder / "data"

    def _open(self) -> tuple[GPT, Tokenizer]:
        """The base, once: a GGUF file's tokenizer takes as long as its weights."""
        network, tokenizer = open_base(self.base, self._dtype(), self.device)
        _ = tokenizer.end_of_text_id  # one that ends no text, or that is not there, is refused
        if (lora := lora_settings(self.settings)) is not None:  # refused now, not after minutes of measuring
            check_attachable(network, lora, load_family(self.base.path), int8=self.settings.int8_base)
        return network, tokenizer

    def _with_head(self, network: GPT, material: Material) -> GPT:
        """For a classification, with a head over its classes."""
        if material.classes:
            attach_head(network, len(material.classes), seed=self.settings.seed)
        return network

    def _prepare(self, folder: Path, tokenizer: Tokenizer) -> Material:
        limit = context_limit(self.settings, self.base.config)
        with timed("reading examples", self.display.say):
            return materials.prepare(
                self.sources, self.settings, tokenizer, folder, context_length=limit, say=self.display.say,
                most=most_examples(self.base.config, self.clock.budget),
            )  # fmt: skip

    def _dtype(self) -> str:
        """What is computed in; an interrupted run goes on as it began."""
        if self.record:
            return plan_of(self.record, self.run_folder).recipe.dtype
        return str(compute_type(self.device, describe_machine().features)).removeprefix("torch.")

    def _agreed_plan(self, material: Material, network: GPT, measured: float) -> tuple[FinetunePlan, Trainee]:
        """The interrupted run's plan, or a new one, which is written down with everything that led to it."""
        if self.record:
            plan = plan_of(self.record, self.run_folder)
            return plan, Trainee.of(network, self.base, plan.recipe)
        plan, trainee = self._new_plan(material, network, measured)
        record = RunRecord(self.sources, asdict(self.settings), plan.to_dict(), verb="finetune", model=self.model)
        self.record = record.write(self.run_folder / RUN_FILE)
        return plan, trainee

    def _new_plan(self, material: Material, network: GPT, measured: float) -> tuple[FinetunePlan, Trainee]:
        """:param measured: seconds that measuring took, and will take again."""
        feed, config = Feed(material, self.settings.seed), self.base.config
        stats = material.train.stats
        facts = Facts(feed.examples, stats.tokens, stats.longest, len(material.examples))
        row_length = typical_row_length(layer.weight for layer in network.blocks.modules() if isinstance(layer, Linear))
        recipe = make_recipe(
            self.settings, config, material.method, dtype=self._dtype(), row_length=row_length, labels=material.classes
        )
        trainee = Trainee.of(network, self.base, recipe)
        speed, seconds = math.nan, None
        if self.clock.budget is not None:
            batches = feed.first(shape_of(self.settings, config, recipe.method, facts, math.inf))
            speed = trainee.tokens_per_second(batches, self.clock.probing)
            seconds = self.clock.learning(measured, choosing=self._chooses(recipe))
            if recipe.method in WITH_REFERENCE:
                seconds -= reference_seconds(recipe, facts, speed, seconds)
            self.clock.check(seconds)
        plan = make_plan(
            self.settings, config, recipe, facts, trained_parameters=trainee.size, seconds=seconds, tokens_per_second=speed,
            steps_per_epoch=feed.steps_per_epoch,
        )  # fmt: skip
        for line in ("plan:", *(f"  {reason}" for reason in plan.reasons)):
            self.display.say(line)
        return plan, trainee

    def _replay(self, material: Material, network: GPT, tokenizer: Tokenizer) -> ReplaySource | None:
        """General text against forgetting, made by the model before it learns, or read."""
        settings, folder = self.settings, self._data / "replay"
        share = plan_of(self.record, self.run_folder).replay if self.record else replay_share(settings, material.method)
        if not share:
            return None
        if self.record and (folder / MANIFEST).exists():
            return ReplaySource(ExampleStore.open(folder), share)
        tokens = int(min(MOST_REPLAYED, max(LEAST_REPLAYED, share * REPLAYED_PASSES * material.train.stats.tokens)))
        store = replay_store(
            folder, network=network, tokenizer=tokenizer, source=settings.replay_from, tokens=tokens,
            context_length=material.train.stats.longest, seconds=self.clock.replaying,
            seed=settings.seed, say=self.display.say,
        )  # fmt: skip
        return ReplaySource(store, share)

    # --- measuring and training ---

    def _measure(self, material: Material, network: GPT, seconds: float | None, penalties: Sequence[float]) -> Measurement:
        return measure(
            network, material.tokenizer, material.renderer, material.examples, material.held_out, seconds=seconds,
            seed=self.settings.seed, labels=material.labels, penalties=penalties,
        )  # fmt: skip

    def _measure_again(self, material: Material, network: GPT, before: Measurement) -> Measurement:
        """With a greater penalty on repetition, if the answers loop without; whoever serves the model is told of it."""
        greater = () if before.kind == "text" else tuple(penalty for penalty in PENALTIES if penalty > before.penalty)
        after = self._measure(material, network, self.clock.measuring_again(before.seconds), (before.penalty, *greater))
        if after.penalty != before.penalty:
            recommend(self.folder, self.base, material.tokenizer, after.penalty)
        return after

    def _before(self, material: Material, network: GPT) -> Measurement:
        """How the base does, measured once, and never anew in a resumed run."""
        kept = self.run_folder / BEFORE
        if self.record and kept.exists():
            return Measurement.read(kept)
        with timed("measuring what the model does before", self.display.say):
            before = self._measure(material, network, self.clock.measuring, (self.base.repetition_penalty(),))
        before.write(kept)
        return before

    def _trainer(
        self, plan: FinetunePlan, trainee: Trainee, material: Material, replay: ReplaySource | None, measured: float,
        lock: RunLock,
    ) -> Trainer:  # fmt: skip
        assert self.record is not None
        model = file_key(self.base.path)
        feed = Feed(material, plan.recipe.seed, replay=replay)
        references = self._references(plan, trainee, feed, model)
        course, is_new = plan.course, not (self.run_folder / CHECKPOINTS).exists()
        if course.budget_seconds is not None and is_new:
            # Measured again: what the plan and the reference took must not come on top.
            course = replace(course, budget_seconds=max(1.0, self.clock.learning(measured, choosing=self._chooses(plan.recipe))))
        identity = {
            "examples": material.train.fingerprint, "held-out examples": material.held_out.fingerprint, "model": model,
            "tokenizer": material.tokenizer.fingerprint, "plan": self.record.plan_hash(),
            "general text": _fingerprint(replay),
        }  # fmt: skip
        trainer = Trainer(
            trainee.module, feed.batches(plan.shape, references), feed.held_out(plan.shape, references), course, self.run_folder,
            yardsticks=Yardsticks(None, None), identity=identity, display=self.display, lock=lock, verb="finetune",
        )  # fmt: skip
        if not is_new and trainer.restore(self.checkpoint) is None:
            self.display.warn("there is no whole checkpoint to go on from: the run begins again")
        return trainer

    def _references(self, plan: FinetunePlan, trainee: Trainee, feed: Feed, model: str) -> References | None:
        """What the base thinks of the answers, unless the method needs it not, or the adapter is switched off to know it."""
        if plan.recipe.method not in WITH_REFERENCE or (plan.recipe.lora is not None and plan.epochs < 1):
            return None
        with timed("asking the model about the answers", self.display.say):
            return feed.references(trainee.network, plan.shape, self._data, model)

    # --- end ---

    def _finish(
        self, plan: FinetunePlan, trainee: Trainee, material: Material, before: Measurement, training: dict[str, Any]
    ) -> FinetunedModel:
        say = self.display.say
        strength = self._strengthened(plan, trainee, material, before)
        training = {**training, **({} if strength is None else {"strength": strength.chosen})}
        with timed("saving", say):
            save(
                self.folder, trainee, self.base, material.tokenizer, named=self._named_base(), dtype=plan.recipe.dtype,
                labels=material.classes,
            )  # fmt: skip
        with timed("measuring what the model does now", say):
            after = self._measure_again(material, trainee.serving(), before)
        with timed("writing the report", say):
            report = write_report(
                self.folder, before=before, after=after, curve=self.run_folder / "metrics.jsonl", data=material.facts,
                plan=_told(plan, strength), method=plan.recipe.method,
            )  # fmt: skip
            text = card(
                self.folder.resolve().name, self._shown_base(), plan, data=material.facts, training=training,
                sentence=report.sentence(),
            )  # fmt: skip
            save_card(self.folder, text)
        return self._result(plan, material.facts, training, report)

    def _strengthened(self, plan: FinetunePlan, trainee: Trainee, material: Material, before: Measurement) -> Strength | None:
        """Weaken the adapter as was asked for, or as suits held-out examples and general text best; None where it has no say."""
        lora, asked, say, held_out = trainee.lora, self.settings.strength, self.display.say, material.held_out
        if lora is not None and asked is not None:
            strength = Strength(asked, f"{asked:.0%} of what was learned, as given")
        elif lora is not None and isinstance(held_out, ExampleStore) and self._chooses(plan.recipe):
            with timed("choosing how much of it to keep", say):
                strength = choose(lora, held_out, material.tokenizer, known_languages(before.general), before=before)
        else:
            return None
        lora.weaken(strength.chosen)
        say(f"strength: {strength.reason}")
        return strength

    def _chooses(self, recipe: Recipe) -> bool:
        """Whether it is to be found out how much of what was learned is best kept."""
        return recipe.lora is not None and recipe.method == "sft" and self.settings.strength is None

    def _named_base(self) -> str:
        """The base for whoever opens the adapter: an absolute path, or the name under which it was pulled."""
        return str(self.base.path) if Path(self.model).exists() else self.model

    def _shown_base(self) -> str:
        """The base for whoever reads the card: where the owner keeps it is the owner's own business."""
        return self.base.path.name if Path(self.model).exists() else self.model

    def _result(
        self, plan: FinetunePlan, data: dict[str, Any], training: dict[str, Any] | None = None, report: Report | None = None
    ) -> FinetunedModel:
        found: dict[str, Any] = {} if report is None else {
            "sentence": report.sentence(), "warnings": tuple(map(str, report.concerns)), "report": report.values,
        }  # fmt: skip
        method, seconds = plan.recipe.method, self.clock.elapsed
        return FinetunedModel(self.folder, method, data, plan.to_dict(), training=training or {}, seconds=seconds, **found)


def _fingerprint(replay: ReplaySource | None) -> str:
    return replay.source.fingerprint if replay and isinstance(replay.source, ExampleStore) else "none"


def plan_of(record: RunRecord, run_folder: Path) -> FinetunePlan:
    """The plan in run.yaml.

    :raises CheckpointError: it is not one that this version reads.
    """
    return record.read_plan(FinetunePlan.from_dict, run_folder)


def _told(plan: FinetunePlan, strength: Strength | None) -> dict[str, Any]:
    """The plan as the report tells it."""
    recipe, shape = plan.recipe, plan.shape
    reasons = [*plan.reasons, *([] if strength is None else [f"strength: {strength.reason}"])]
    return {
        "learning_rate": recipe.optimizer.matrix_rate, "lora": recipe.lora is not None, "replay": plan.replay,
        "rank": recipe.lora.rank if recipe.lora else None, "trained_parameters": plan.trained_parameters,
        "rows_a_step": shape.batch_size * shape.accumulation, "context_length": shape.context_length, "seed": recipe.seed,
        "steps": plan.course.steps, "epochs": round(plan.epochs, 2), "reasons": reasons,
        **({} if strength is None else {"strength": strength.chosen}),
    }  # fmt: skip
