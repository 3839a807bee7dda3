"""``owngpt data prepare``, ``owngpt data report`` and ``owngpt data sets``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from owngpt.cli.options import Json, Quiet, options_of
from owngpt.cli.output import say
from owngpt.config.checks import at_least
from owngpt.config.data import DataConfig
from owngpt.config.units import in_bytes
from owngpt.errors import UsageError

if TYPE_CHECKING:
    from owngpt.data.corpora import NamedCorpus

DataOptions = options_of(DataConfig, leave_out=("deduplicate", "near_duplicates", "repair_text"))


def prepare(
    *sources: str,
    output: Annotated[Path, Parameter(alias="-o")],
    tokenizer: str = "bpe",
    vocab_size: int = 4096,
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
        Files and folders of txt, md, code, jsonl, csv or parquet, or names of corpora.
    output
        The folder to write to.
    tokenizer
        bpe, byte or char to train one, or the folder of an existing one.
    vocab_size
        Tokens in the vocabulary of a tokenizer that is trained.
    no_deduplicate
        Keep repeated documents.
    no_near_duplicates
        Keep documents that nearly equal another.
    no_repair
        Leave wrongly decoded text as it is.
    """
    if not sources:
        raise UsageError("nothing to prepare: name a file, a folder or a corpus, as in `owngpt data prepare books/ -o data`")
    at_least("vocab_size", vocab_size, 1)
    settings = {
        "deduplicate": not no_deduplicate,
        "near_duplicates": not (no_near_duplicates or no_deduplicate),
        "repair_text": not no_repair,
        **(options or {}),
    }
    config = DataConfig(**settings)

    from owngpt import api
    from owngpt.data.prepare import find_report
    from owngpt.data.progress import shown_progress

    with shown_progress(quiet=quiet) as progress:
        prepared = api.prepare(
            list(sources), output, tokenizer=tokenizer, vocab_size=vocab_size, config=config, progress=progress, say=say
        )
    found = find_report(output)
    tokens = {"train_tokens": prepared.train.token_count, "validation_tokens": prepared.validation.token_count}
    if json:
        return {"output": output, **tokens, "report": found.to_dict()}
    print("\n".join(found.lines()))
    print(f"Tokens      {tokens['train_tokens']:,} to train on, {tokens['validation_tokens']:,} held out, in {output}")
    return None


def report(folder: Path, /, *, json: Json = False) -> dict[str, Any] | None:
    """What was kept, what was removed and why, from a folder that `data prepare` or `train` made.

    Parameters
    ----------
    folder
        The folder given as --output.
    """
    from owngpt.data.prepare import find_report

    found = find_report(folder)
    if json:
        return found.to_dict()
    print("\n".join(found.lines()))
    return None


def sets(*, json: Json = False) -> dict[str, Any] | None:
    """The names of public texts that `train` takes for SRC, and of public examples that `finetune` takes for DATA."""
    from owngpt.data.corpora import CORPORA
    from owngpt.finetune.examples.named import named_sets

    texts, examples = CORPORA, named_sets()
    if json:
        return {
            "texts": {name: _described(corpus) for name, corpus in texts.items()},
            "examples": {name: each.to_dict() for name, each in examples.items()},
        }
    print("Texts, for owngpt train:")
    for name, corpus in texts.items():
        _show(name, corpus, in_bytes(corpus.text_bytes))
    print("Examples, for owngpt finetune:")
    for name, each in examples.items():
        _show(name, each.corpus, f"{each.examples:,} {each.kind} examples")
    return None


def _described(corpus: NamedCorpus) -> dict[str, Any]:
    """As a named set's own ``to_dict`` has it."""
    names = ("description", "language", "licence", "client", "package", "sha256", "download_bytes", "text_bytes")
    return {name: getattr(corpus, name) for name in names}


def _show(name: str, corpus: NamedCorpus, size: str) -> None:
    print(f"  {name}\n    {corpus.description}")
    client = corpus.client.partition("-")[0]
    download = f"{in_bytes(corpus.download_bytes)} with {client}" if corpus.download_bytes else "no download"
    print(f"    {size}; {corpus.language}; {download}; licence: {corpus.licence}")
