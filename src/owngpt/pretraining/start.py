"""The beginning of a run: what a person asked for, checked, becomes a job."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from owngpt.config.run_record import RUN_FILE, RunRecord, checked_options
from owngpt.config.training import TrainConfig
from owngpt.data.shards import load_prepared
from owngpt.errors import CheckpointError, DataError, OwnGPTError, UsageError
from owngpt.formats.base import BaseModel
from owngpt.pretraining.job import Job, TrainedModel
from owngpt.pretraining.parts import build_batches, build_module, plan_of
from owngpt.pretraining.text import check_tokenizer, folders
from owngpt.train.output import RUN, check_output, default_output, folder_to_resume
from owngpt.train.parallel import Ranks


def train(
    sources: str | Path | Sequence[str | Path] = (), *, output: str | Path | None = None, resume: bool = False,
    resume_from: str | Path | None = None, dry_run: bool = False, quiet: bool = False, began: float | None = None, **options: Any,
) -> TrainedModel:  # fmt: skip
    """Train a GPT on text and save it as a model folder.

    Under torchrun, every process calls this with the same arguments, and they train one model together.

    :param sources: files, folders or names of corpora.
    :param output: the model folder to make, by default a new one under ``runs/`` that is named after the first source; with
        ``resume`` the folder of an interrupted run.
    :param resume: go on from the newest whole checkpoint in ``output``; damaged ones are named and skipped.
    :param resume_from: go on from this checkpoint, ``OUT/run/checkpoints/step-…``.
    :param dry_run: prepare the text elsewhere, make and show the plan, and stop; ``output`` is left alone.
    :param quiet: no progress on stderr.
    :param began: ``time.monotonic()`` from which ``minutes`` count, by default now.
    :param options: fields of :class:`owngpt.config.training.TrainConfig`.
    :raises OwnGPTError: with the value, the limit and the fix, whenever something a person gave does not work.
    """
    began = time.monotonic() if began is None else began
    paths = [str(sources)] if isinstance(sources, str | Path) else [str(path) for path in sources]
    checkpoint = None if resume_from is None else Path(resume_from)
    options = checked_options(options, "train")
    ranks = Ranks.from_environment()
    try:
        if ranks is not None and not ranks.leads:
            return _follow(ranks, began)
        with nullcontext() if ranks is None else ranks.leading():
            if resume or checkpoint:
                job = _resumed(output, checkpoint, options, began, quiet, ranks)
            else:
                job = _new(paths, output, options, began, quiet, ranks)
            return job.plan_only() if dry_run else job.run()
    finally:
        if ranks is not None:
            ranks.leave()


def _new(
    sources: list[str], output: str | Path | None, options: dict[str, Any], began: float, quiet: bool, ranks: Ranks | None
) -> Job:
    """A run that begins."""
    settings = TrainConfig(**options)
    if settings.from_model and Path(settings.from_model).exists():  # so that it is found again from any working folder
        settings = replace(settings, from_model=str(Path(settings.from_model).resolve()))
    if not sources and not settings.corpus:
        raise UsageError("nothing to train on: give files or folders, or the name of a corpus")
    check_tokenizer(settings)
    folder = default_output(sources, settings.corpus) if output is None else Path(output)
    check_output(folder)
    job = Job(folder, sources, settings, began, quiet=quiet, ranks=ranks)
    job.is_named = output is not None
    return job


def _resumed(
    output: str | Path | None, checkpoint: Path | None, options: dict[str, Any], began: float, quiet: bool, ranks: Ranks | None
) -> Job:
    """The job that an earlier process left in its folder."""
    folder = folder_to_resume(output, checkpoint)
    record = RunRecord.read(folder / RUN / RUN_FILE)
    plan_of(record, folder / RUN)  # a damaged plan is said before anything else
    job = Job(folder, record.sources, TrainConfig(**record.settings), began, quiet=quiet, ranks=ranks, record=record)
    job.checkpoint = checkpoint
    record.check_same(options)
    return job


def _follow(ranks: Ranks, began: float) -> TrainedModel:
    """What every rank but the first does: the same steps on other batches, as the first one says."""
    run_folder = ranks.wait_until_ready()
    if run_folder is None:
        return TrainedModel(Path(), {}, [], {}, {}, time.monotonic() - began, ranks.rank)
    with _visible(run_folder, ranks):
        record = RunRecord.read(run_folder / RUN_FILE)
        plan = plan_of(record, run_folder)
        prepared = load_prepared(folders(run_folder)[1], verify=False)
        name = record.settings.get("from_model")
    module = build_module(plan, ranks.device, ranks, BaseModel.of(name) if name else None)
    ranks.follow(module, build_batches(plan, prepared, ranks), accumulation=plan.course.accumulation)
    return TrainedModel(run_folder.parent, {}, [], plan.to_dict(), {}, time.monotonic() - began, ranks.rank)


@contextmanager
def _visible(folder: Path, ranks: Ranks) -> Iterator[None]:
    try:
        yield
    except (DataError, CheckpointError) as error:
        raise OwnGPTError(f"rank {ranks.rank} cannot read {folder}: {error}; all ranks need the same folder to see") from error
