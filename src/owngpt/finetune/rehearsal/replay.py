"""General text for ``--replay``: what the owner names, or what the model itself writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from owngpt.data.corpora import CORPORA, resolve
from owngpt.data.sources import Document, ReadLog, documents, part_end
from owngpt.errors import DataError
from owngpt.finetune.examples.dataset import open_examples
from owngpt.finetune.examples.example import Example, Labelled, Origin, PlainText, Preference
from owngpt.finetune.examples.named import SETS
from owngpt.finetune.rehearsal.written import written_texts
from owngpt.finetune.rendering.renderer import Renderer
from owngpt.finetune.sequences.encoded import Encoded
from owngpt.finetune.sequences.store import ExampleStore, write_store
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer

Say = Callable[[str], None]
ROW_FILES = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz")
"""Files of examples rather than of text."""
TOKENS_EACH = 100
"""That an example has at least, about: so many are drawn that they will do."""
PIECE_CHARACTERS = 2000


def replay_store(
    folder: Path,
    *,
    network: GPT,
    tokenizer: Tokenizer,
    source: str | Path | None,
    tokens: int,
    context_length: int,
    seconds: float | None,
    seed: int,
    say: Say,
) -> ExampleStore:
    """General text as sequences for :class:`owngpt.finetune.sequences.batches.ReplaySource`, kept in a folder for a resumed run.

    :param network: the base as it is before it learns.
    :param tokenizer: the base's own, with its own chat template if it has one.
    :param source: a file or folder of text or examples, a named corpus or set; None lets the model write.
    :param tokens: that are wanted in all, about.
    :param seconds: for writing; texts of files are read as far as ``tokens`` go.
    :raises DataError: the source is not there, or holds nothing to learn.
    """
    if source is None:
        say(f"replay: the model writes about {tokens:,} tokens of its own to be reminded by")
        deadline = None if seconds is None else time.monotonic() + seconds
        texts: Iterable[Encoded] = written_texts(
            network, tokenizer, tokens=tokens, context_length=context_length, deadline=deadline, seed=seed
        )
    else:
        chosen = _drawn(_examples(source, say), tokens // TOKENS_EACH + 1, seed)
        texts = _up_to(tokens, Renderer(tokenizer).encode_all(chosen, skip_bad=True))
    store = write_store(texts, folder, context_length=context_length, overflow="split")
    say(f"replay: {store.stats.sentence()}")
    return store


def _examples(source: str | Path, say: Say) -> Iterator[Example]:
    """Of a source of either kind; what has no words to learn is left out."""
    path, name = Path(source), str(source)
    if not path.exists() and name not in CORPORA and name not in SETS:
        raise DataError(
            f"--replay-from {name} is neither a file or folder here nor a named corpus ({', '.join(CORPORA)}) "
            f"nor a named set ({', '.join(SETS)})"
        )
    if (name in SETS and not path.exists()) or path.name.endswith(ROW_FILES):
        for example in open_examples([source], skip_bad=True):
            if not isinstance(example, Labelled | Preference):
                yield example
        return
    for document in documents(resolve([source], say=say), ReadLog()):
        yield from _pieces(document)


def _pieces(document: Document) -> Iterator[PlainText]:
    """A text in parts of a few paragraphs, so that a few come from everywhere rather than all from one."""
    rest = document.text
    while rest.strip():
        end = part_end(rest, PIECE_CHARACTERS) if len(rest) > PIECE_CHARACTERS else len(rest)
        if rest[:end].strip():
            yield PlainText(rest[:end], Origin(document.source, document.index + 1))
        rest = rest[end:]


def _drawn(examples: Iterable[Example], count: int, seed: int) -> list[Example]:
    """Any ``count`` of them, each with the same chance, in a drawn order, with no more than these in memory."""
    generator = np.random.default_rng(seed % 2**32)
    kept: list[Example] = []
    for number, example in enumerate(examples):
        if number < count:
            kept.append(example)
        elif (place := int(generator.integers(number + 1))) < count:
            kept[place] = example
    return [kept[int(place)] for place in generator.permutation(len(kept))]


def _up_to(tokens: int, sequences: Iterable[Encoded]) -> Iterator[Encoded]:
    """Sequences until they have so many tokens together."""
    count = 0
    for sequence in sequences:
        if count >= tokens:
            return
        yield sequence
        count += len(sequence)
