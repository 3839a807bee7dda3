"""The main job, assembled: from sources to a scored model folder, inside the time that was named.

data.collect → text.train_tokenizer → data.tokenize → train.make_plan → train.Trainer → evaluate.score_text → formats.save_model
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from owngpt.config.data import DataConfig
from owngpt.config.files import atomic_write_text, make_folder
from owngpt.config.generation import GenerationConfig
from owngpt.config.training import DEFAULT_MINUTES, TrainConfig
from owngpt.data.batches import Batches, validation_batches
from owngpt.data.corpora import fetch
from owngpt.data.corpus import Corpus, collect
from owngpt.data.shards import PreparedData, load_prepared, tokenize
from owngpt.engine.generate import generate
from owngpt.errors import UsageError
from owngpt.evaluate.bits import score_text
from owngpt.families import family_for
from owngpt.formats.card import model_card
from owngpt.formats.folder import save_model
from owngpt.kernels.ceiling import matmul_ceiling
from owngpt.kernels.machine import describe_machine
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer
from owngpt.train.curve import draw_curve
from owngpt.train.display import Display, make_display
from owngpt.train.lock import RunLock
from owngpt.train.planner import Plan, TextFacts, compute_type, make_plan, vocabulary_size
from owngpt.train.recorder import Yardsticks
from owngpt.train.step import TrainModule
from owngpt.train.throughput import step_flops
from owngpt.train.trainer import Trainer

TOKENIZER_SAMPLE = 8 * 2**20
"""Bytes of training text that a tokenizer is trained on, at most."""
SAMPLE_BYTES_PER_SECOND = 20_000
"""Of the budget: a short run learns its vocabulary from less text."""
VOCABULARY_MULTIPLE = 32
"""The embedding's rows are rounded up to it, which matrix units like."""
VALIDATION_TOKENS = 65_536
"""Held-out tokens looked at during the run, at most."""
SCORE_SHARE = 0.02
"""Of the budget for the final score."""
SAVE_SECONDS = 4.0
"""Of the budget for samples, the model folder and the picture."""
SAMPLE_TOKENS = 60
SAMPLES = 3


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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "output": str(self.output)}


def train(
    sources: str | Path | Sequence[str | Path] = (), *, output: str | Path, resume: bool = False, dry_run: bool = False,
    quiet: bool = False, began: float | None = None, **options: Any,
) -> TrainedModel:  # fmt: skip
    """Train a GPT on text and save it as a model folder.

    :param sources: files, folders or names of corpora.
    :param output: the model folder to make; with ``resume`` the folder of an interrupted run.
    :param dry_run: prepare the text, make and show the plan, and stop.
    :param quiet: no progress on stderr.
    :param began: ``time.monotonic()`` from which ``minutes`` count, by default now.
    :param options: fields of :class:`owngpt.config.training.TrainConfig`.
    :raises OwnGPTError: with the value, the limit and the fix, whenever something a person gave does not work.
    """
    began = time.monotonic() if began is None else began
    paths = [sources] if isinstance(sources, str | Path) else list(sources)
    folder = Path(output)
    if resume:
        job = _Job.resumed(folder, began, quiet)
        _check_same(asdict(job.settings), options)
    else:
        settings = TrainConfig(**options)
        if not paths and not settings.corpus:
            raise UsageError("nothing to train on: give files or folders, or the name of a corpus")
        _check_output(folder)
        job = _Job(folder, [str(path) for path in paths], settings, began, quiet)
    return job.plan_only() if dry_run else job.run()


def _check_same(kept: dict[str, Any], given: dict[str, Any]) -> None:
    """A resumed run goes on as it began: an option that says otherwise is an error, one that repeats it is not."""
    unknown = [name for name in given if name not in kept]
    differing = [name for name, value in given.items() if name in kept and value is not None and value != kept[name]]
    if unknown or differing:
        name = (unknown or differing)[0]
        option = name.replace("_", "-")
        had = "unknown" if unknown else f"{kept[name]} in this run"
        raise UsageError(
            f"--{option} {given[name]} is {had}; --resume goes on with the run's own settings: leave it out, or start a new run"
        )


def _check_output(folder: Path) -> None:
    """The folder must be new, empty, or hold no more than a run of ours that never got to a checkpoint."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file; --output must name a folder")
    inside = {path.name for path in folder.iterdir()}
    if (folder / "run" / "checkpoints").exists() and any((folder / "run" / "checkpoints").iterdir()):
        raise UsageError(f"{folder} already holds a run; go on with --resume, or choose another output folder")
    if inside - {"run"}:
        raise UsageError(f"{folder} already holds {sorted(inside)[0]}; choose a new or empty output folder")


class _Job:
    """One run of the main job. Its settings, data and plan lie under ``run/``, so that a resumed one takes the same way."""

    def __init__(self, folder: Path, sources: list[str], settings: TrainConfig, began: float, quiet: bool) -> None:
        self.folder, self.sources, self.settings, self.began = folder, sources, settings, began
        self.run_folder = folder / "run"
        self.quiet = quiet
        self.display: Display = make_display(quiet=quiet)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.machine = describe_machine()
        self.is_resumed = False

    @classmethod
    def resumed(cls, folder: Path, began: float, quiet: bool) -> _Job:
        """The job that an earlier process left in ``folder``."""
        described = folder / "run" / "run.yaml"
        if not described.exists():
            raise UsageError(f"{folder} holds no run to resume (no run/run.yaml); start one without --resume")
        values = yaml.safe_load(described.read_text(encoding="utf-8"))
        job = cls(folder, values["sources"], TrainConfig(**values["settings"]), began, quiet)
        job.is_resumed = True
        return job

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
        """Everything up to the plan."""
        with RunLock(self.run_folder):
            tokenizer, prepared, _ = self._prepare()
            plan = self._saved_plan() or self._plan(tokenizer, prepared)
        return TrainedModel(self.folder, {}, [], plan.to_dict(), {}, time.monotonic() - self.began)

    def run(self) -> TrainedModel:
        """The whole job."""
        with RunLock(self.run_folder):  # the trainer takes it again
            tokenizer, prepared, corpus = self._prepare()
            plan = self._saved_plan() or self._plan(tokenizer, prepared)
        trainer, module = self._trainer(plan, tokenizer, prepared, corpus)
        result = trainer.run()
        return self._finish(plan, module, tokenizer, corpus, result.to_dict())

    # --- text ---

    def _prepare(self) -> tuple[Tokenizer, PreparedData, Corpus]:
        settings = self.settings
        if self.is_resumed and (kept := self._kept()) is not None:
            return kept
        sources: list[str | Path] = list(self.sources)
        if settings.corpus:
            sources += fetch(settings.corpus)
        data = DataConfig(
            mask_personal_data=settings.mask_personal_data,
            validation_fraction=settings.validation_fraction,
            seed=settings.seed % 2**32,
        )
        with self._stage("reading text"):
            corpus = collect(sources, self._data_folders()[0], data)
        self._say(_corpus_line(corpus))
        for line in _data_notes(corpus):
            self._say(line)
        with self._stage("training the tokenizer"):
            tokenizer = self._tokenizer(corpus)
        with self._stage("tokenizing"):
            prepared = tokenize(corpus, tokenizer, self._data_folders()[1])
        return tokenizer, prepared, corpus

    def _kept(self) -> tuple[Tokenizer, PreparedData, Corpus] | None:
        """What the interrupted run prepared, if anything: its sources may have changed since; a resumed run must not."""
        text, tokens, tokenizer = self._data_folders()
        if not (self.run_folder / "run.yaml").exists() or not (tokens / "manifest.json").exists():
            return None
        with self._stage("verifying the prepared text"):
            return Tokenizer.load(tokenizer), load_prepared(tokens), Corpus.load(text)

    def _data_folders(self) -> tuple[Path, Path, Path]:
        """(text, tokens, tokenizer)"""
        return self.run_folder / "data" / "text", self.run_folder / "data" / "tokens", self.run_folder / "tokenizer"

    def _tokenizer(self, corpus: Corpus) -> Tokenizer:
        settings, kept = self.settings, self._data_folders()[2]
        kind = settings.tokenizer or "bpe"
        if kind not in ("bpe", "byte", "char"):
            tokenizer = Tokenizer.load(Path(kind))
        else:
            size = vocabulary_size(settings, corpus.train.bytes, self.remaining())
            enough = (
                TOKENIZER_SAMPLE if self.budget is None else int(min(TOKENIZER_SAMPLE, SAMPLE_BYTES_PER_SECOND * self.budget))
            )
            texts = corpus.train.sample(enough)
            tokenizer = train_tokenizer(texts, kind=kind, vocab_size=size)  # type: ignore[arg-type]
        make_folder(kept)
        tokenizer.save(kept)
        return tokenizer

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._say(f"{name}: {time.monotonic() - start:.1f} s")

    def _say(self, line: str) -> None:
        """A line of progress, unless the person wants none."""
        if not self.quiet:
            self.display.say(line)

    # --- plan ---

    def _plan(self, tokenizer: Tokenizer, prepared: PreparedData) -> Plan:
        rows = -(-tokenizer.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        facts = TextFacts(prepared.train.byte_count, prepared.train.token_count, rows)
        dtype = compute_type(self.device, self.machine.features)
        remaining = self.remaining()
        if remaining is not None:
            remaining -= self._reserve()
            if remaining < 1.0:
                raise UsageError(
                    f"after preparing the text {max(remaining, 0):.0f} s of {self.budget:.0f} are left to train in; "
                    f"give at least --minutes {(time.monotonic() - self.began + self._reserve() + 10) / 60:.1f}"
                )
        plan = make_plan(self.settings, facts, seconds=remaining, dtype=dtype, device=self.device)
        family_for(plan.model)  # a shape that no model folder can hold must not be found out after training
        for line in ("plan:", *(f"  {reason}" for reason in plan.reasons)):
            self._say(line)
        description = {"sources": self.sources, "settings": asdict(self.settings), "plan": plan.to_dict()}
        atomic_write_text(
            self.run_folder / "run.yaml", yaml.safe_dump(json.loads(json.dumps(description)), sort_keys=False, allow_unicode=True)
        )
        return plan

    def _saved_plan(self) -> Plan | None:
        if not self.is_resumed:
            return None
        values = yaml.safe_load((self.run_folder / "run.yaml").read_text(encoding="utf-8"))
        return Plan.from_dict(values["plan"])

    def _reserve(self) -> float:
        """Seconds kept for scoring, samples and saving."""
        assert self.budget is not None
        return SAVE_SECONDS + SCORE_SHARE * self.budget

    # --- training ---

    def _trainer(self, plan: Plan, tokenizer: Tokenizer, prepared: PreparedData, corpus: Corpus) -> tuple[Trainer, TrainModule]:
        model = GPT(plan.model, generator=torch.Generator().manual_seed(plan.seed)).to(self.device)
        module = TrainModule(model, plan.optimizer, dtype=getattr(torch, plan.dtype), clip=plan.clip, seed=plan.seed)
        shape = {"context_length": plan.model.context_length, "batch_size": plan.batch_size, "document_mask": plan.document_mask}
        batches = Batches(prepared.train, seed=plan.seed % 2**32, **shape)  # type: ignore[arg-type]
        held_out = validation_batches(prepared.validation, max_tokens=VALIDATION_TOKENS, **shape)  # type: ignore[arg-type]
        course = plan.course
        if self.budget is not None:
            # Measured again: what the plan itself took must not come on top.
            left = (self.remaining() or 0.0) - self._reserve()
            course = replace(course, budget_seconds=max(1.0, left) if not self.is_resumed else course.budget_seconds)
        flops = step_flops(plan.model, plan.batch_size) / (plan.batch_size * plan.model.context_length)
        ceiling = matmul_ceiling(getattr(torch, plan.dtype), 0.2, device=self.device.type)
        yardsticks = Yardsticks(prepared.train.bytes_per_token, prepared.validation.bytes_per_token, flops, ceiling)
        prompts = _prompts(corpus, tokenizer)
        identity = {"text": corpus.fingerprint, "tokenizer": tokenizer.fingerprint, "plan": _hash(plan.to_dict())}
        trainer = Trainer(
            module, batches, held_out, course, self.run_folder, yardsticks=yardsticks, identity=identity, display=self.display,
            on_sample=lambda network: _samples(network, tokenizer, prompts, plan.seed),
        )  # fmt: skip
        if self.is_resumed:
            trainer.restore()
        return trainer, module

    # --- end ---

    def _finish(
        self, plan: Plan, module: TrainModule, tokenizer: Tokenizer, corpus: Corpus, training: dict[str, Any]
    ) -> TrainedModel:
        network = module.model
        score: dict[str, Any] = {}
        if corpus.validation.documents:
            with self._stage("scoring on held-out text"):
                texts = corpus.validation.sample(_score_bytes(plan, self._score_seconds()))
                score = score_text(network, tokenizer, texts).to_dict()
        with self._stage("writing samples"):
            samples = _samples(network, tokenizer, _prompts(corpus, tokenizer), plan.seed)
        with self._stage("saving"):
            self._save(plan, module, tokenizer, corpus, score, training, samples)
        return TrainedModel(self.folder, score, samples, plan.to_dict(), training, time.monotonic() - self.began)

    def _score_seconds(self) -> float | None:
        """What the final score may take; less when the run came late to its end."""
        if self.budget is None:
            return None
        return max(0.3, min(self.budget * SCORE_SHARE, (self.remaining() or 0.0) - SAVE_SECONDS))

    def _save(
        self, plan: Plan, module: TrainModule, tokenizer: Tokenizer, corpus: Corpus, score: dict[str, Any],
        training: dict[str, Any], samples: list[dict[str, Any]],
    ) -> None:  # fmt: skip
        """The model folder, its card and the picture of the run."""
        final = GPT(plan.model)
        final.load_state_dict(module.weights())
        card = model_card(
            name=self.folder.resolve().name, config=plan.model, data=corpus.report.to_dict(), plan=plan.to_dict(), score=score,
            training=training, samples=samples, tokenizer=tokenizer,
        )  # fmt: skip
        save_model(self.folder, final, tokenizer, card=card, generation=None)
        atomic_write_text(self.run_folder / "data.json", json.dumps(corpus.report.to_dict(), indent=2, ensure_ascii=False))
        draw_curve(self.run_folder / "metrics.jsonl", self.folder / "loss.png", title=self.folder.resolve().name)


def _corpus_line(corpus: Corpus) -> str:
    train_, held = corpus.train, corpus.validation
    return (
        f"text: {train_.documents:,} documents, {train_.bytes / 1e6:.2f} MB to train on; {held.documents:,} documents, "
        f"{held.bytes / 1e3:.0f} KB held out"
    )


def _data_notes(corpus: Corpus) -> list[str]:
    """What a person should know of the text before waiting for a model: warnings, and how much was left out."""
    report = corpus.report
    notes = [f"warning: {warning}" for warning in report.warnings]
    left_out = [f"{count:,} {reason}" for reason, count in report.skipped.items()]
    left_out += [f"{removed.documents:,} {reason}" for reason, removed in report.removed.items()]
    if left_out:
        notes.append(f"left out: {', '.join(left_out)} (see `owngpt data report`)")
    return notes


def _score_bytes(plan: Plan, seconds: float | None) -> int:
    """Held-out bytes that can be scored in the time; a forward pass is a third of a step, and the window visits tokens twice."""
    if seconds is None or plan.tokens_per_second != plan.tokens_per_second:
        return 2**20
    return int(min(2**20, max(2**14, seconds * plan.tokens_per_second * 1.2 * 2.5)))


def _prompts(corpus: Corpus, tokenizer: Tokenizer) -> list[list[int]]:
    """The openings of held-out passages (of training text when nothing is held out), as token ids."""
    split = corpus.validation if corpus.validation.documents else corpus.train
    pieces = split.sample(SAMPLES * 2000, piece_bytes=2000)[:SAMPLES]
    return [tokenizer.encode(piece[:300])[:24] for piece in pieces]


def _samples(network: GPT, tokenizer: Tokenizer, prompts: list[list[int]], seed: int) -> list[dict[str, Any]]:
    limit = network.config.context_length
    config = GenerationConfig(max_new_tokens=min(SAMPLE_TOKENS, limit // 2), temperature=0.8, top_p=0.95, seed=seed % 2**32)
    samples = []
    for prompt in prompts:
        ids = prompt[: limit // 2]
        text = generate(network, tokenizer, ids, config)[0].text
        samples.append({"prompt": tokenizer.decode(ids), "text": text})
    return samples


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
