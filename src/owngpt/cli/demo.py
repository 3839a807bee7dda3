"""``owngpt demo``"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from owngpt.cli.options import Json, Quiet
from owngpt.cli.output import say
from owngpt.cli.train import print_result
from owngpt.config.training import TrainConfig

DEFAULT_CORPUS = "python-stdlib"


def demo(
    *,
    corpus: str = DEFAULT_CORPUS,
    minutes: float = 3.0,
    output: Annotated[Path | None, Parameter(alias="-o", show_default=False)] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> dict[str, Any] | None:
    """Train a small model and show what it can do.

    Parameters
    ----------
    corpus
        A named corpus; the built-in one needs no network.
    minutes
        The time to take, everything included.
    output
        The model folder to make; without it, a new one named owngpt-demo here.
    """
    began = time.monotonic()
    TrainConfig(corpus=corpus, minutes=minutes)

    from owngpt import api
    from owngpt.train.output import unused

    folder = output or unused(Path("owngpt-demo"))
    if not quiet:
        say(f"Training on {corpus} for {minutes:g} minutes; the model will be in {folder}.")

    result = api.train([], output=folder, corpus=corpus, minutes=minutes, quiet=quiet, began=began)
    if json:
        return result.to_dict()
    print("\nWhat it makes of openings it never saw:")
    for sample in result.samples:
        print(f"\n--- {_indented(sample['prompt'])}\n... {_indented(sample['text'])}")
    print()
    print_result(result)
    return None


def _indented(text: str) -> str:
    return text.strip("\n").replace("\n", "\n    ")
