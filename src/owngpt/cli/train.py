"""``owngpt train``"""

from __future__ import annotations

import math
import shlex
import time
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from owngpt.cli.options import Json, Quiet, options_of
from owngpt.cli.output import print_pairs
from owngpt.config.run_record import read_configuration
from owngpt.config.training import TrainConfig, merged
from owngpt.errors import UsageError

TrainOptions = options_of(TrainConfig)


def train(
    *sources: str,
    output: Annotated[Path | None, Parameter(alias="-o", show_default=False)] = None,
    config: Annotated[Path | None, Parameter(show_default=False)] = None,
    resume: Annotated[bool, Parameter(show_default=False)] = False,
    resume_from: Annotated[Path | None, Parameter(show_default=False)] = None,
    dry_run: Annotated[bool, Parameter(show_default=False)] = False,
    options: TrainOptions = None,
    json: Json = False,
    quiet: Quiet = False,
) -> dict[str, Any] | None:
    """Train a GPT on your text, in the time you name.

    Parameters
    ----------
    sources
        Files and folders of txt, md, code, jsonl, csv or parquet, or names of corpora.
    output
        The model folder to make; without it, a new one under runs/ that is named after the first source.
    config
        A YAML file of the options below, or the run.yaml of a run to repeat; what is given on the command line wins.
    resume
        Go on with the run in the output folder, from its newest whole checkpoint.
    resume_from
        Go on from this checkpoint: OUT/run/checkpoints/step-….
    dry_run
        Print the plan and its reasons, and stop; the output folder is not touched.
    """
    began = time.monotonic()
    again = resume or resume_from is not None
    _, named, settings = read_configuration(config) if config else (None, [], {})
    settings = merged(settings, options or {})
    TrainConfig(**settings)
    sources = sources or tuple(named)
    if not sources and not settings.get("corpus") and not again:
        raise UsageError("nothing to train on: name a file or folder, as in `owngpt train books/`, or use --corpus NAME")

    from owngpt import api

    result = api.train(
        list(sources), output=output, resume=resume, resume_from=resume_from, dry_run=dry_run,
        quiet=quiet or dry_run,  # a dry run prints its plan and nothing else
        began=began, **settings,
    )  # fmt: skip
    if result.rank:
        return None  # of several processes one speaks
    if json:
        return result.to_dict()
    print_plan(result.plan) if dry_run else print_result(result)
    return None


def print_plan(plan: dict[str, Any]) -> None:
    """What a run would do and why, on stdout."""
    model, course = plan["model"], plan["course"]
    per_step = plan["batch_size"] * course["accumulation"] * model["context_length"]
    pairs = {
        "model": f"{model['layers']} layers of width {model['hidden_size']}, {model['heads']} heads, "
        f"vocabulary {model['vocab_size']:,}, context {model['context_length']:,}",
        "steps": f"about {course['steps']:,} of {per_step:,} tokens",
    }
    if math.isfinite(plan["expected_bits_per_byte"]):  # not known of a model that goes on from another
        pairs["expected"] = f"{plan['expected_bits_per_byte']:.2f} bits per byte on text that is held out"
    if math.isfinite(plan["tokens_per_second"]):  # not measured when steps or tokens decide the length
        pairs["speed"] = f"{plan['tokens_per_second']:,.0f} tokens/s"
    print_pairs(pairs)
    print("\nWhy:")
    for reason in plan["reasons"]:
        print(f"  {reason}")


def print_result(result: Any) -> None:
    """The score, the folder and what to do next, on stdout."""
    score = result.score
    pairs: dict[str, Any] = {"score": "none: the text was too small to hold any of it out"}
    if score:
        pairs = {
            "bits per byte": f"{score['bits_per_byte']:.4f} on {score['bytes']:,} bytes that were held out",
            "perplexity": f"{score['perplexity']:.2f} per token",
        }
    print_pairs({**pairs, "time": f"{result.seconds / 60:.1f} minutes", "folder": result.output})
    folder = shlex.quote(str(result.output))
    print("\nNext:")
    print(f'  owngpt generate {folder} --prompt "…"')
    print(f"  owngpt chat {folder}")
    print(f"  owngpt eval {folder} --data FILE")
