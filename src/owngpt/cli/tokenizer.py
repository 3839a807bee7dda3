"""``owngpt tokenizer train`` and ``owngpt tokenizer report``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from owngpt.cli.options import Json
from owngpt.cli.output import print_report, say
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
        Files and folders of text.
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

    from owngpt.data.sources import documents
    from owngpt.text.training import train_tokenizer

    texts = (document.text for document in documents(list(sources)))
    tokenizer = train_tokenizer(texts, kind=kind, vocab_size=vocab_size)
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
        A model folder, a tokenizer folder or a tokenizer.json.
    sources
        Files and folders of text to judge it on.
    """
    if not sources:
        raise UsageError("nothing to judge the tokenizer on: name a file or folder after it")

    from owngpt.data.sources import documents
    from owngpt.text.report import tokenizer_report
    from owngpt.text.tokenizer import Tokenizer

    found = tokenizer_report(Tokenizer.load(model), (document.text for document in documents(list(sources))))
    if json:
        return found.to_dict()
    print_report(found)
    return None
