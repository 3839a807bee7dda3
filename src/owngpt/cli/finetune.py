"""``owngpt finetune``"""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from owngpt.cli.options import Json, Quiet, options_of
from owngpt.cli.output import print_pairs, say
from owngpt.config.finetuning import DIALS, FinetuneConfig
from owngpt.config.run_record import read_configuration
from owngpt.config.training import merged
from owngpt.errors import UsageError

FinetuneOptions = options_of(FinetuneConfig)


def finetune(
    model: Annotated[str | None, Parameter(show_default=False)] = None,
    /,
    *data: str,
    output: Annotated[Path | None, Parameter(alias="-o", show_default=False)] = None,
    config: Annotated[Path | None, Parameter(show_default=False)] = None,
    resume: Annotated[bool, Parameter(show_default=False)] = False,
    resume_from: Annotated[Path | None, Parameter(show_default=False)] = None,
    show: Annotated[int | None, Parameter(show_default=False)] = None,
    dry_run: Annotated[bool, Parameter(show_default=False)] = False,
    options: FinetuneOptions = None,
    json: Json = False,
    quiet: Quiet = False,
) -> dict[str, Any] | None:
    """Teach a model your task, from examples of it.

    Parameters
    ----------
    model
        A model folder, a .gguf file, an adapter folder, or the name of a pulled model.
    data
        Files and folders of jsonl, json, csv or parquet, or named sets of examples.
    output
        The folder to make; without it, a new one under runs/ that is named after the first source.
    config
        A YAML file of the options below, or the run.yaml of a run to repeat; what is given on the command line wins.
    resume
        Go on with the run in the output folder, from its newest whole checkpoint.
    resume_from
        Go on from this checkpoint: OUT/run/checkpoints/step-….
    show
        Print so many examples as the model will read them, what is learned in colour, and stop.
    dry_run
        Print the plan and its reasons, and stop; the output folder is not touched.
    """
    began = time.monotonic()
    again = resume or resume_from is not None
    named_model, named, settings = read_configuration(config, "finetune") if config else (None, [], {})
    settings = merged(settings, options or {}, DIALS)
    FinetuneConfig(**settings)
    model, data = model or named_model, data or tuple(named)
    if (model is None or not data) and not again:
        missing = "no model" if model is None else "nothing to learn from"
        raise UsageError(f"{missing}: name a model and examples, as in `owngpt finetune MODEL rows.jsonl -o DIR`")
    if show is not None:
        return _show(model, list(data), show, settings, json, quiet)

    from owngpt import api

    result = api.finetune(
        model, list(data), output=output, resume=resume, resume_from=resume_from, dry_run=dry_run,
        quiet=quiet or dry_run,  # a dry run prints its plan and nothing else
        began=began, **settings,
    )  # fmt: skip
    if json:
        return result.to_dict()
    print_plan(result) if dry_run else print_result(result)
    return None


def _show(
    model: str | None, data: list[str], count: int, settings: dict[str, Any], json: bool, quiet: bool
) -> dict[str, Any] | None:
    """The first examples as they are learned."""
    if model is None or not data:
        raise UsageError("--show needs a model and examples, as in `owngpt finetune MODEL rows.jsonl --show 3`")
    from owngpt.finetune.look import look
    from owngpt.finetune.rendering.show import print_examples

    looked = look(model, data, count, say=(lambda line: None) if quiet else say, **settings)
    if json:
        return looked.to_dict()
    print_examples(looked.examples)
    return None


def print_plan(result: Any) -> None:
    """What a run would do and why, on stdout."""
    print_pairs({"examples": result.data["sentence"], "method": result.method})
    print("\nWhy:")
    for reason in result.plan["reasons"]:
        print(f"  {reason}")


def print_result(result: Any) -> None:
    """What changed, what is off, the folder and what to do next, on stdout."""
    print_pairs(
        {
            "changed": result.sentence,
            "time": f"{result.seconds / 60:.1f} minutes",
            "folder": result.output,
            "report": result.output / "report.md",
        }
    )
    for warning in result.warnings:
        print(f"\nwarning: {warning}")
    folder = shlex.quote(str(result.output))
    print("\nNext:")
    if result.method != "classify":
        print(f"  owngpt chat {folder}")
        print(f'  owngpt generate {folder} --prompt "…"')
    if result.plan["recipe"]["lora"] is not None and result.method != "classify":  # a classifier is whole already
        print(f"  owngpt export {folder} --merge -o {shlex.quote(f'{result.output}-merged')}")
