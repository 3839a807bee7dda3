"""``owngpt train``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from owngpt.cli.options import Json, Quiet, options_of
from owngpt.cli.output import print_pairs
from owngpt.config.settings_file import read_settings
from owngpt.config.training import TrainConfig, merged
from owngpt.errors import UsageError

TrainOptions = options_of(TrainConfig)


def train(
    *sources: str,
    output: Annotated[Path, Parameter(alias="-o")],
    config: Annotated[Path | None, Parameter(show_default=False)] = None,
    resume: Annotated[bool, Parameter(show_default=False)] = False,
    dry_run: Annotated[bool, Parameter(show_default=False)] = False,
    options: TrainOptions = None,
    json: Json = False,
    quiet: Quiet = False,
) -> dict[str, Any] | None:
    """Train a GPT on your text, in the time you name.

    Parameters
    ----------
    sources
        Files and folders of txt, md, code, jsonl, csv or parquet.
    output
        The model folder to make.
    config
        A YAML file of the options below; what is given on the command line wins.
    resume
        Go on with the run in the output folder.
    dry_run
        Print the plan and its reasons, and stop.
    """
    settings = merged(read_settings(config, TrainConfig) if config else {}, options or {})
    TrainConfig(**settings)
    if not sources and not settings.get("corpus") and not resume:
        raise UsageError("nothing to train on: name a file or folder, as in `owngpt train books/ -o out`, or use --corpus NAME")

    from owngpt import api

    result = api.train(list(sources), output=output, resume=resume, dry_run=dry_run, quiet=quiet, **settings)
    if json:
        return result.to_dict()
    if not dry_run:
        print_result(result)
    return None


def print_result(result: Any) -> None:
    """The score, the folder and what to do next, on stdout."""
    score = result.score
    print_pairs(
        {
            "bits per byte": f"{score['bits_per_byte']:.4f} on text that was held out",
            "perplexity": f"{score['perplexity']:.2f} per token",
            "folder": result.output,
        }
    )
    print("\nNext:")
    print(f'  owngpt generate {result.output} --prompt "…"')
    print(f"  owngpt chat {result.output}")
    print(f"  owngpt eval {result.output} --data FILE")
