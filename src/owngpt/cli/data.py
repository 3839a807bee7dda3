"""``owngpt data prepare`` and ``owngpt data report``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from owngpt.cli.options import Json, Quiet, options_of
from owngpt.cli.output import print_report, say
from owngpt.config.data import DataConfig
from owngpt.errors import UsageError

DataOptions = options_of(DataConfig, leave_out=("deduplicate", "near_duplicates", "repair_text"))


def prepare(
    *sources: str,
    output: Annotated[Path, Parameter(alias="-o")],
    tokenizer: str = "bpe",
    vocab_size: int = 4096,
    corpus: str | None = None,
    no_deduplicate: Annotated[bool, Parameter(show_default=False)] = False,
    no_near_duplicates: Annotated[bool, Parameter(show_default=False)] = False,
    no_repair: Annotated[bool, Parameter(show_default=False)] = False,
    options: DataOptions = None,
    json: Json = False,
    quiet: Quiet = False,
) -> dict[str, Any] | None:
    """Clean, de-duplicate, split and tokenize text into shards that training reads.

    Parameters
    ----------
    sources
        Files and folders of txt, md, code, jsonl, csv or parquet.
    output
        The folder to write to.
    tokenizer
        bpe, byte or char to train one, or the folder of an existing one.
    vocab_size
        Tokens in the vocabulary of a tokenizer that is trained.
    corpus
        A named corpus instead of files.
    no_deduplicate
        Keep repeated documents.
    no_near_duplicates
        Keep documents that nearly equal another.
    no_repair
        Leave wrongly decoded text as it is.
    """
    if not sources and not corpus:
        raise UsageError("nothing to prepare: name files or folders (`owngpt data prepare books/ -o data`) or use --corpus NAME")
    settings = {
        "deduplicate": not no_deduplicate,
        "near_duplicates": not (no_near_duplicates or no_deduplicate),
        "repair_text": not no_repair,
        **(options or {}),
    }
    DataConfig(**settings)

    from owngpt import api

    prepared = api.prepare(
        list(sources), output, tokenizer=tokenizer, vocab_size=vocab_size, corpus=corpus, quiet=quiet, **settings
    )
    if json:
        return prepared.to_dict()
    print_report(prepared.report)
    say(f"Tokens are in {output}; `owngpt train` prepares text by itself, so this is for looking and for reuse.")
    return None


def report(folder: Path, /, *, json: Json = False) -> dict[str, Any] | None:
    """What was kept, what was removed and why, from a folder that `data prepare` or `train` made.

    Parameters
    ----------
    folder
        The folder given as --output.
    """
    from owngpt.data.report import DataReport

    found = DataReport.load(folder)
    if json:
        return found.to_dict()
    print_report(found)
    return None
