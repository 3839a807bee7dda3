"""What a run learns from: people's rows become sequences on disk, which a resumed run opens again, never the rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from owngpt.config.files import atomic_write_text, make_folder
from owngpt.config.finetuning import PREFERENCE_METHODS, FinetuneConfig, Method
from owngpt.data.files import MANIFEST
from owngpt.errors import DataError, UsageError
from owngpt.finetune.examples.dataset import ExampleSet, open_examples, split_examples
from owngpt.finetune.examples.example import Example, Kind
from owngpt.finetune.examples.places import near
from owngpt.finetune.examples.split import Side, shared_prompts
from owngpt.finetune.objectives.label_words import LabelWords, WordRenderer
from owngpt.finetune.rendering.pool import encode_all
from owngpt.finetune.rendering.renderer import Renderer
from owngpt.finetune.rendering.system import with_system
from owngpt.finetune.sequences.encoded import Encoded
from owngpt.finetune.sequences.kept_examples import read_examples, write_examples
from owngpt.finetune.sequences.overflow import Overflow, StoreStats, fitted
from owngpt.finetune.sequences.store import ExampleStore, write_store
from owngpt.text.tokenizer import Tokenizer

Say = Callable[[str], None]
FACTS, HELD_OUT, TOKENIZER = "data.json", "held_out.jsonl", "tokenizer"
MOST_HELD_OUT = 500
MOST_LABELS = 1_000
WANTED: dict[Method, Kind | None] = {
    "sft": None, "dpo": "preference", "ipo": "preference", "orpo": "preference", "classify": "label"
}  # fmt: skip
USUAL: dict[Kind, Method] = {"preference": "dpo", "label": "classify"}


@dataclass(frozen=True)
class Nothing:
    """The sequences of no example."""

    stats: StoreStats
    fingerprint: str = "none"

    def __len__(self) -> int:
        return 0

    def example(self, index: int) -> Encoded:
        """There is none."""
        raise IndexError(index)


@dataclass(frozen=True)
class Material:
    """Examples as the run uses them."""

    method: Method
    tokenizer: Tokenizer
    """With the chat template that serves."""
    renderer: Renderer
    train: ExampleStore
    held_out: ExampleStore | Nothing
    examples: Sequence[Example]
    """Those held out."""
    labels: tuple[str, ...]
    """Of texts that belong to classes, in the order of their indices."""
    facts: dict[str, Any]
    """For the report: ``sentence``, ``train``, ``held_out``, ``notes`` …"""

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels, where a head tells them apart; none where the model answers with them."""
        return self.labels if self.method == "classify" else ()


@dataclass(frozen=True)
class OpenedRows:
    """Rows that were looked at, and how they are shown to the model."""

    examples: ExampleSet
    method: Method
    labels: tuple[str, ...]
    renderer: Renderer


def open_rows(sources: Sequence[str], settings: FinetuneConfig, tokenizer: Tokenizer, *, say: Say) -> OpenedRows:
    """Look at every row once, and say what was found.

    :raises DataError: a row cannot be used; the message names file, line and fix.
    :raises UsageError: the rows are for another method, or a source is unknown.
    """
    examples = _open(sources, settings, say)
    method = method_for(settings.method, examples.kind)
    for line in examples.lines():
        say(line)
    for name, methods in (("beta", PREFERENCE_METHODS), ("label_smoothing", ("dpo",))):
        if getattr(settings, name) and method not in methods:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} is of {', '.join(methods)}, and these rows are for {method}; leave it out")
    if (settings.replay or settings.replay_from) and method != "sft" and not settings.label_words:
        raise UsageError(f"--replay mixes text between answers to learn, and the method is {method}; leave it out, or use sft")
    labels = _labels(examples) if method == "classify" else ()
    if settings.label_words:
        return OpenedRows(examples, "sft", labels, _word_renderer(tokenizer, labels, examples.kind))
    return OpenedRows(examples, method, labels, _renderer(tokenizer, settings, labels, examples.kinds))


def prepare(
    sources: Sequence[str], settings: FinetuneConfig, tokenizer: Tokenizer, folder: Path, *, context_length: int, say: Say,
    most: int | None = None,
) -> Material:  # fmt: skip
    """Read, check, split and encode; everything lies under ``folder`` afterwards.

    :param context_length: tokens of an example at most.
    :param most: examples that there will be time to learn from: of more, that many are drawn.
    :raises DataError: a row cannot be used; the message names file, line and fix.
    :raises UsageError: the rows are for another method, or a source is unknown.
    """
    opened = open_rows(sources, settings, tokenizer, say=say)
    examples, method, labels, renderer = opened.examples, opened.method, opened.labels, opened.renderer
    others, held_out, of_validation, shared = _split(examples, settings, say)
    train = _drawn(others, most, settings.seed, say)
    make_folder(folder)
    skip = settings.skip_bad
    overflow, pairs = settings.overflow or ("drop" if skip else "error"), method in PREFERENCE_METHODS
    encode = partial(encode_all, renderer) if type(renderer) is Renderer else renderer.encode_all
    store = write_store(
        encode(train, skip_bad=skip), folder / "train", context_length=context_length, overflow=overflow, pairs=pairs
    )
    kept, seen = _scorable(renderer, held_out, context_length=context_length, overflow=overflow, pairs=pairs, skip_bad=skip)
    scored: ExampleStore | Nothing = Nothing(StoreStats())
    if kept:
        scored = write_store(
            renderer.encode_all(kept), folder / "held_out", context_length=context_length, overflow="drop", pairs=pairs
        )
    scored_stats = replace(scored.stats, dropped=seen.dropped, masked=seen.masked, equal=seen.equal)
    notes = [*of_validation, *renderer.notes, *_left_out(renderer)]
    for note in (*notes, f"to learn from: {store.stats.sentence()}", f"held out: {scored_stats.sentence()}"):
        say(note)
    renderer.tokenizer.save(make_folder(folder / TOKENIZER))
    write_examples(folder / HELD_OUT, kept)
    facts = {
        "sentence": examples.sentence(), "sources": list(map(_named, sources)), "labels": list(labels), "method": method,
        "notes": notes,
        "train": store.stats.to_dict(), "held_out": scored_stats.to_dict(), "shared_prompts": shared,
        "examples": _without_folders(examples.to_dict()),
    }  # fmt: skip
    atomic_write_text(folder / FACTS, json.dumps(facts, indent=2, ensure_ascii=False, default=str))
    return Material(method, renderer.tokenizer, renderer, store, scored, kept, labels, facts)


def _named(source: str) -> str:
    """Without its folder: reports are passed on, and where somebody keeps things is nobody's business."""
    return Path(source).name if Path(source).is_absolute() else source


def _without_folders(examples: dict[str, Any]) -> dict[str, Any]:
    """What is told of the examples, for a report."""
    refused = examples["refused"]
    return examples | {
        "files": [one | {"file": _named(one["file"])} for one in examples["files"]],
        "refused": refused | {"first": [one | {"file": _named(one["file"])} for one in refused["first"]]},
    }


def kept(folder: Path) -> Material | None:
    """What an interrupted run prepared, if it got that far.

    :raises DataError: something of it is damaged.
    """
    if not (folder / FACTS).exists():  # written last
        return None
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        method, labels = facts["method"], tuple(facts["labels"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / FACTS} cannot be read ({error}); put a copy back or start a new run") from error
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    scored: ExampleStore | Nothing = Nothing(StoreStats())
    if (folder / "held_out" / MANIFEST).exists():
        scored = ExampleStore.open(folder / "held_out")
    renderer = (WordRenderer if labels and method != "classify" else Renderer)(tokenizer, labels=labels or None)
    train, examples = ExampleStore.open(folder / "train"), read_examples(folder / HELD_OUT)
    return Material(method, tokenizer, renderer, train, scored, examples, labels, facts)


def method_for(wanted: Method | None, kind: Kind) -> Method:
    """What was asked for, if the rows are for it; else what they are for.

    :raises UsageError: they are for something else.
    """
    if wanted is None:
        return USUAL.get(kind, "sft")
    needed = WANTED[wanted]
    if needed is not None and kind != needed:
        columns = {"preference": "chosen and rejected", "label": "text and label"}[needed]
        raise UsageError(f"--method {wanted} learns from rows with {columns}, but these hold {_NAMES[kind]}; {_fix(kind)}")
    if needed is None and kind in USUAL:
        raise UsageError(f"--method {wanted} learns from answers, but these rows hold {_NAMES[kind]}; {_fix(kind)}")
    return wanted


_NAMES: dict[Kind, str] = {
    "chat": "conversations", "completion": "prompts and completions", "text": "plain text", "preference": "preferences",
    "label": "labels",
}  # fmt: skip


def _fix(kind: Kind) -> str:
    return f"use --method {USUAL.get(kind, 'sft')}, or leave it out to have it chosen"


def _open(sources: Sequence[str], settings: FinetuneConfig, say: Say, *, only_checked: bool = False) -> ExampleSet:
    wanted = WANTED[settings.method] if settings.method else None
    return open_examples(
        sources, layout=settings.layout, columns=settings.column_names() or None, skip_bad=settings.skip_bad, wanted=wanted,
        only_checked=only_checked, say=say,
    )  # fmt: skip


def _split(examples: ExampleSet, settings: FinetuneConfig, say: Say) -> tuple[ExampleSet | Side, list[Example], list[str], int]:
    """Examples to learn from, those held out, notes on the file that they are in, and how many ask what is learned."""
    if settings.validation is None:
        train, others = split_examples(examples, held_out=settings.held_out, seed=settings.seed)
        return train, list(others), [], 0
    named = _open([settings.validation], settings, say, only_checked=True)
    if named.kind != examples.kind and {named.kind, examples.kind} & {"preference", "label"}:
        raise UsageError(
            f"--validation {settings.validation} holds {_NAMES[named.kind]}, the examples are {_NAMES[examples.kind]}; "
            "name a file of the same kind"
        )
    validation = near(settings.validation)
    notes = [f"--validation {validation}: {named.sentence()}", *named.summary.notes]
    if len(named) > MOST_HELD_OUT:
        notes.append(f"the first {MOST_HELD_OUT:,} of them are held out, which tell enough")
    if shared := shared_prompts(examples, named):
        notes.append(
            f"{shared:,} of {len(named):,} examples of {validation} ask what is learned, so they tell little; "
            "leave them out of one side"
        )
    return examples, list(islice(named, MOST_HELD_OUT)), notes, shared


def _drawn(train: ExampleSet | Side, most: int | None, seed: int, say: Say) -> Iterable[Example]:
    """All, or ``most`` of them, each with the same chance."""
    count = len(train)
    if most is None or count <= most:
        return train
    say(f"of {count:,} examples {most:,} are drawn, several times what there is time for; give more --minutes to use all")
    chosen = np.zeros(count, dtype=bool)
    chosen[np.random.default_rng(seed % 2**32).permutation(count)[:most]] = True
    return (example for example, is_chosen in zip(train, chosen, strict=False) if is_chosen)


def _labels(examples: ExampleSet) -> tuple[str, ...]:
    """The classes, by name.

    :raises DataError: there is only one, or so many that they are no classes.
    """
    counts = examples.summary.labels
    if len(counts) > MOST_LABELS:
        raise DataError(
            f"there are {len(counts):,} labels, more than {MOST_LABELS:,}; name the right column with --columns label=…"
        )
    if len(counts) < 2:
        raise DataError(f"every row has the label {next(iter(counts), 'none')!r}; give rows of at least two labels")
    return tuple(sorted(counts))


def _renderer(tokenizer: Tokenizer, settings: FinetuneConfig, labels: tuple[str, ...], kinds: Iterable[Kind]) -> Renderer:
    renderer = Renderer(tokenizer, labels=labels or None)
    if settings.system is None:
        return renderer
    if not {"chat", "preference"} & set(kinds):
        raise UsageError("--system is said in conversations, and these rows are none; leave it out")
    said = Renderer(with_system(renderer.ensure_template(), settings.system), labels=labels or None)
    said.notes += renderer.notes
    return said


def _word_renderer(tokenizer: Tokenizer, labels: tuple[str, ...], kind: Kind) -> WordRenderer:
    """:raises UsageError: the rows have no labels.

    :raises DataError: the tokenizer does not tell two labels apart.
    """
    if not labels:
        raise UsageError(f"--label-words is for rows with a text and a label, but these hold {_NAMES[kind]}; leave it out")
    renderer = WordRenderer(tokenizer, labels=labels)
    LabelWords(renderer, labels)
    return renderer


def _scorable(
    renderer: Renderer, held_out: Sequence[Example], *, context_length: int, overflow: Overflow, pairs: bool, skip_bad: bool
) -> tuple[list[Example], StoreStats]:
    """The held-out examples that can be scored whole, and a count of the others: none is left out unsaid.

    :raises DataError: one cannot be used, and nobody said that such may be left out.
    """
    whole, seen = [], StoreStats()
    of_long: Overflow = "error" if overflow == "error" else "drop"  # the score of a part would be another one's
    for example in held_out:
        try:
            sequences = renderer.encode(example)
        except DataError as error:
            renderer.refuse(error, skip_bad=skip_bad)
            continue
        fitting = fitted(sequences, seen, context_length=context_length, overflow=of_long, pairs=pairs)
        if len(list(fitting)) == len(sequences):
            whole.append(example)
    return whole, seen


def _left_out(renderer: Renderer) -> list[str]:
    if not renderer.refused_count:
        return []
    return [f"{renderer.refused_count:,} more rows refused: {renderer.refused[0]}"]
