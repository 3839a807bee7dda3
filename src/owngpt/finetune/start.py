"""The beginning of a fine-tuning: what a person asked for, checked, becomes a job."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from owngpt.config.finetuning import FinetuneConfig, as_options
from owngpt.config.run_record import RUN_FILE, RunRecord, checked_options
from owngpt.errors import UsageError
from owngpt.finetune.job import Job, plan_of
from owngpt.finetune.result import FinetunedModel
from owngpt.train.output import RUN, check_output, default_output, folder_to_resume

FILES = ("validation", "replay_from")
"""Options that name files."""


def finetune(
    model: str | Path | None = None, data: str | Path | Sequence[str | Path] = (), *, output: str | Path | None = None,
    resume: bool = False, resume_from: str | Path | None = None, dry_run: bool = False, quiet: bool = False,
    began: float | None = None, **options: Any,
) -> FinetunedModel:  # fmt: skip
    """Fine-tune a model on examples: an adapter beside it, or the model itself, and a report of what that changed.

    :param model: a model folder, a .gguf file, an adapter folder, or the name of a pulled model.
    :param data: files, folders or named sets of examples.
    :param output: the folder to make, by default a new one under ``runs/`` that is named after the first source; with
        ``resume`` the folder of an interrupted run.
    :param resume: go on from the newest whole checkpoint in ``output``; model and data are those of the run.
    :param resume_from: go on from this checkpoint, ``OUT/run/checkpoints/step-…``.
    :param dry_run: read the examples, make and show the plan, and stop; ``output`` is left alone.
    :param quiet: no progress on stderr.
    :param began: ``time.monotonic()`` from which ``minutes`` count, by default now.
    :param options: fields of :class:`owngpt.config.finetuning.FinetuneConfig`.
    :raises OwnGPTError: with the value, the limit and the fix, whenever something a person gave does not work.
    """
    began = time.monotonic() if began is None else began
    sources = [str(data)] if isinstance(data, str | Path) else [str(path) for path in data]
    checkpoint = None if resume_from is None else Path(resume_from)
    given = checked_options(as_options(options), "finetune")
    _check_alone()
    if resume or checkpoint:
        job = _resumed(output, checkpoint, model, sources, given, began, quiet)
    else:
        job = _new(model, sources, output, given, began, quiet)
    return job.plan_only() if dry_run else job.run()


def _new(
    model: str | Path | None, sources: list[str], output: str | Path | None, options: dict[str, Any], began: float, quiet: bool
) -> Job:
    """A run that begins."""
    settings = FinetuneConfig(**_found_again(options))
    if model is None:
        raise UsageError(
            "no model to fine-tune: name a folder or a pulled model, as in `owngpt finetune MODEL rows.jsonl -o DIR`"
        )
    if not sources:
        raise UsageError("nothing to learn from: name a file of examples, as in `owngpt finetune MODEL rows.jsonl -o DIR`")
    folder = default_output(sources, None) if output is None else Path(output)
    check_output(folder)
    job = Job(folder, _absolute(str(model)), [_absolute(source) for source in sources], settings, began, quiet=quiet)
    job.is_named = output is not None
    return job


def _resumed(
    output: str | Path | None, checkpoint: Path | None, model: str | Path | None, sources: list[str], options: dict[str, Any],
    began: float, quiet: bool,
) -> Job:  # fmt: skip
    """The job that an earlier process left in its folder."""
    folder = folder_to_resume(output, checkpoint)
    record = RunRecord.read(folder / RUN / RUN_FILE, "finetune")
    plan_of(record, folder / RUN)  # a damaged plan is said before anything else
    if record.model is None:
        raise UsageError(f"{folder / RUN / RUN_FILE} does not say which model was fine-tuned; put a copy back or start a new run")
    _check_same(record, model, sources, options)
    job = Job(folder, record.model, record.sources, FinetuneConfig(**record.settings), began, quiet=quiet, record=record)
    job.checkpoint = checkpoint
    return job


def _check_alone() -> None:
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise UsageError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but a fine-tuning runs in one process; start it without torchrun"
        )


def _check_same(record: RunRecord, model: str | Path | None, sources: list[str], given: dict[str, Any]) -> None:
    """A resumed run goes on as it began: what says otherwise is an error, what repeats it is not."""
    if model is not None and _absolute(str(model)) != record.model:
        raise UsageError(f"this run tunes {record.model}, not {model}; leave the model out, or start a new run")
    if sources and [_absolute(source) for source in sources] != record.sources:
        raise UsageError("--resume goes on with the run's own examples; leave the sources out, or start a new run")
    record.check_same(_found_again(given))


def _found_again(options: dict[str, Any]) -> dict[str, Any]:
    """With files that are found again from any working folder."""
    return {name: _absolute(str(value)) if value and name in FILES else value for name, value in options.items()}


def _absolute(spec: str) -> str:
    """A path that exists, absolute; a name as it is."""
    return str(Path(spec).absolute()) if Path(spec).exists() else spec
