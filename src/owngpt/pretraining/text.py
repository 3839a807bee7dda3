"""From sources to tokens on disk, with what a person should know of them on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from owngpt.config.data import DataConfig
from owngpt.config.files import make_folder
from owngpt.config.training import TrainConfig
from owngpt.data.corpora import fetch
from owngpt.data.corpus import Corpus, collect
from owngpt.data.progress import LEARNING, Progress, Stage, shown_progress
from owngpt.data.shards import PreparedData, load_prepared, tokenize
from owngpt.errors import UsageError
from owngpt.formats.base import BaseModel
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import MAXIMUM_VOCABULARY, MINIMUM_VOCABULARY, train_tokenizer
from owngpt.train.display import timed
from owngpt.train.planner import vocabulary_size

TOKENIZER_SAMPLE = 8 * 2**20
"""Bytes of training text that a tokenizer is trained on, at most."""
SAMPLE_BYTES_PER_SECOND = 20_000
"""Of the budget: a short run learns its vocabulary from less text."""
KINDS = ("bpe", "byte", "char")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Text:
    """What a run learns from."""

    tokenizer: Tokenizer
    prepared: PreparedData
    corpus: Corpus


def folders(run_folder: Path) -> tuple[Path, Path, Path]:
    """(text, tokens, tokenizer)"""
    return run_folder / "data" / "text", run_folder / "data" / "tokens", run_folder / "tokenizer"


def check_tokenizer(settings: TrainConfig) -> None:
    """Whether the tokenizer that was asked for is possible, before any text is read.

    :raises UsageError: an unknown kind or an impossible vocabulary.
    :raises ModelFolderError: the folder holds no tokenizer that can be used.
    """
    if settings.from_model:
        BaseModel.of(settings.from_model).tokenizer()
        return
    kind, size = settings.tokenizer or "bpe", settings.vocab_size
    if kind not in KINDS:
        if not Path(kind).exists():
            raise UsageError(f"--tokenizer {kind} is neither {', '.join(KINDS)} nor a folder that exists; name one of these")
        Tokenizer.load(Path(kind))
    elif kind != "byte" and size is not None and not MINIMUM_VOCABULARY <= size <= MAXIMUM_VOCABULARY:
        raise UsageError(
            f"--vocab-size {size} is outside of {MINIMUM_VOCABULARY} to {MAXIMUM_VOCABULARY}: the special tokens and 256 bytes "
            "are always there; leave it out to have it chosen"
        )


def prepare_text(
    sources: Sequence[str], settings: TrainConfig, run_folder: Path, *, output: Path, budget: float | None,
    remaining: Callable[[], float | None], say: Say, quiet: bool,
) -> Text:  # fmt: skip
    """Collects, learns a vocabulary, tokenizes; everything lies under ``run_folder`` afterwards.

    :param output: is never read, even when it lies inside of a source.
    :param budget: seconds of the whole run, None when steps decide.
    :param remaining: seconds of it that are left.
    """
    text_folder, tokens_folder, _ = folders(run_folder)
    paths: list[str | Path] = list(sources)
    if settings.corpus:
        paths += fetch(settings.corpus, say=say)
    config = DataConfig(
        mask_personal_data=settings.mask_personal_data,
        validation_fraction=settings.validation_fraction,
        seed=settings.seed % 2**32,
    )
    with shown_progress(quiet=quiet) as progress:
        with timed("reading text", say):
            corpus = collect(paths, text_folder, config, leave_out=[output], progress=progress, say=say)
        for line in (_corpus_line(corpus), *_data_notes(corpus)):
            say(line)
        with timed("loading the tokenizer" if settings.from_model else "training the tokenizer", say):
            tokenizer = _tokenizer(corpus, settings, run_folder, budget, remaining(), progress)
        with timed("tokenizing", say):
            prepared = tokenize(corpus, tokenizer, tokens_folder, progress=progress)
    return Text(tokenizer, prepared, corpus)


def kept_text(run_folder: Path, say: Say) -> Text | None:
    """What an interrupted run prepared, if anything: its sources may have changed since; a resumed run must not."""
    text, tokens, tokenizer = folders(run_folder)
    if not (tokens / "manifest.json").exists():
        return None
    with timed("verifying the prepared text", say):
        return Text(Tokenizer.load(tokenizer), load_prepared(tokens), Corpus.load(text))


def _tokenizer(
    corpus: Corpus, settings: TrainConfig, run_folder: Path, budget: float | None, remaining: float | None,
    progress: Progress | None,
) -> Tokenizer:  # fmt: skip
    kept = folders(run_folder)[2]
    kind = settings.tokenizer or "bpe"
    if settings.from_model:
        tokenizer = BaseModel.of(settings.from_model).tokenizer()
    elif kind not in KINDS:
        tokenizer = Tokenizer.load(Path(kind))
    else:
        size = vocabulary_size(settings, corpus.train.bytes, remaining)
        enough = TOKENIZER_SAMPLE if budget is None else int(min(TOKENIZER_SAMPLE, SAMPLE_BYTES_PER_SECOND * budget))
        texts = corpus.train.sample(enough)
        known = cast("Literal['bpe', 'byte', 'char']", kind)
        with Stage(progress, LEARNING, sum(map(len, texts)), "characters") as stage:
            tokenizer = train_tokenizer(texts, kind=known, vocab_size=size, progress=stage.reach)
    make_folder(kept)
    tokenizer.save(kept)
    return tokenizer


def _corpus_line(corpus: Corpus) -> str:
    train, held = corpus.train, corpus.validation
    return (
        f"text: {train.documents:,} documents, {train.bytes / 1e6:.2f} MB to train on; {held.documents:,} documents, "
        f"{held.bytes / 1e3:.0f} KB held out"
    )


def _data_notes(corpus: Corpus) -> list[str]:
    """What a person should know of the text before waiting for a model: warnings, and how much was left out."""
    report = corpus.report
    notes = [f"warning: {warning}" for warning in report.warnings]
    left_out = [f"{count:,} {reason}" for reason, count in report.skipped.items()]
    left_out += [f"{removed.documents:,} {reason}" for reason, removed in report.removed.items()]
    if left_out:
        notes.append(f"left out: {', '.join(left_out)} (see `owngpt data report`)")
    return notes
