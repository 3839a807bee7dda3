"""``owngpt tokenizer train`` and ``owngpt tokenizer report``"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from owngpt.cli.options import Json
from owngpt.cli.output import print_table, say
from owngpt.config.checks import at_least
from owngpt.errors import UsageError

Kind = Literal["bpe", "byte", "char"]


def train(
    *sources: str,
    output: Annotated[Path, Parameter(alias="-o")],
    kind: Kind = "bpe",
    vocab_size: int = 4096,
    json: Json = False,
) -> dict[str, Any] | None:
    """Learn a vocabulary from text.

    Parameters
    ----------
    sources
        Files and folders of text, or names of corpora.
    output
        The folder to write tokenizer.json to.
    kind
        Byte-pair encoding, plain bytes, or characters.
    vocab_size
        Tokens in the vocabulary, reserved ones included.
    """
    if not sources:
        raise UsageError("nothing to learn from: name a file or folder, as in `owngpt tokenizer train books/ -o tokenizer`")
    at_least("vocab_size", vocab_size, 272)

    own = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    if output.is_dir() and (foreign := sorted(path.name for path in output.iterdir() if path.name not in own)):
        raise UsageError(f"{output} already holds {foreign[0]}; a tokenizer goes to a folder of its own: choose another --output")

    from owngpt.text.training import train_tokenizer

    tokenizer = train_tokenizer(_texts(sources), kind=kind, vocab_size=vocab_size)
    tokenizer.save(output)
    result = {"output": output, "kind": kind, "vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint}
    if json:
        return result
    say(f"{tokenizer.vocab_size:,} tokens are in {output}")
    return None


def report(model: str, /, *sources: str, json: Json = False) -> dict[str, Any] | None:
    """How well a tokenizer fits text: bytes and characters per token by language, unused tokens, byte fallback.

    Parameters
    ----------
    model
        A model folder, a tokenizer folder, a tokenizer.json or the name of a pulled model.
    sources
        Files and folders of text to judge it on, or names of corpora.
    """
    if not sources:
        raise UsageError("nothing to judge the tokenizer on: name a file or folder after it")

    from owngpt.formats.locate import locate
    from owngpt.text.report import tokenizer_report
    from owngpt.text.tokenizer import Tokenizer

    found = tokenizer_report(Tokenizer.load(locate(model)), _texts(sources))
    if json:
        return found.to_dict()
    print_table(found)
    return None


def _texts(sources: tuple[str, ...]) -> Iterator[str]:
    """The documents of files, folders and named corpora, one after the other."""
    from owngpt.data.corpora import resolve
    from owngpt.data.sources import documents, list_files

    return (document.text for document in documents(list_files(resolve(sources, say=say))))
