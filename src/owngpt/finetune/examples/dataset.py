"""All examples of what a person names: read once to know them, then again and again, never held in memory."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from owngpt.config.checks import one_of
from owngpt.config.files import sha256_of_file
from owngpt.data.sources import ReadLog
from owngpt.errors import DataError, UsageError
from owngpt.finetune.examples.columns import columns_from
from owngpt.finetune.examples.example import KINDS, Example, Kind, Labelled
from owngpt.finetune.examples.keys import content_key, prompt_key
from owngpt.finetune.examples.layouts import layout_named
from owngpt.finetune.examples.named import Say
from owngpt.finetune.examples.part import Part, Refusal
from owngpt.finetune.examples.places import parts_of
from owngpt.finetune.examples.split import Keys, split_examples
from owngpt.finetune.examples.summary import Summary

__all__ = ["ExampleSet", "open_examples", "split_examples"]
_MOST_LABELS = 10_000
_ALONE: tuple[Kind, ...] = ("preference", "label")
"""Kinds that are learned by a method of their own, so that no other can be by their side."""


class ExampleSet:
    """Examples in the order of their files and rows; iterating reads the files anew."""

    def __init__(self, parts: Sequence[Part], summary: Summary, keys: Keys, left_out: frozenset[str]) -> None:
        self.parts = tuple(parts)
        self.summary = summary
        self.keys = keys
        self._left_out = left_out
        """Labels whose rows are refused."""

    @property
    def kinds(self) -> Counter[Kind]:
        """How many examples there are of each kind."""
        return +self.summary.counts

    @property
    def kind(self) -> Kind:
        """The kind of these examples; of a mixture, that which needs most: chat, then completion."""
        return next(kind for kind in KINDS if self.summary.counts[kind])

    def __len__(self) -> int:
        return sum(self.summary.counts.values())

    def __iter__(self) -> Iterator[Example]:
        for part in self.parts:
            for outcome in part.outcomes(ReadLog()):
                if not isinstance(outcome, Refusal) and not self._refuses(outcome):
                    yield outcome

    def _refuses(self, example: Example) -> bool:
        return isinstance(example, Labelled) and example.label in self._left_out

    def sentence(self) -> str:
        """ "1,204 chats, 3.1 turns each; 12 rows refused: line 88: no assistant turn"."""
        return self.summary.sentence()

    def lines(self) -> list[str]:
        """What a person is told: how each file was read, then the sentence, then notes."""
        return [*map(_said_of, self.parts[:10]), *_more_files(self.parts), self.sentence(), *self.summary.notes]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, with the SHA-256 of every file."""
        files = [
            {
                "file": part.file.name,
                "layout": part.layout.name if part.layout else None,
                "columns": dict(part.columns.named),
                "unused_columns": list(part.unused),
                "sha256": sha256_of_file(part.file.path),
            }
            for part in self.parts
        ]
        return {"kind": self.kind, "files": files, **self.summary.to_dict(), "sentence": self.sentence()}


def open_examples(
    sources: Sequence[str | os.PathLike[str]],
    *,
    layout: str | None = None,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    wanted: Kind | None = None,
    only_checked: bool = False,
    say: Say | None = None,
) -> ExampleSet:
    """The examples of files, folders and named sets, after every row was looked at once.

    Args:
        layout: the name of the layout of all files; None to find it out for each.
        columns: a layout's field to the file's column.
        skip_bad: leave rows that cannot be used out, counted in the summary, instead of stopping.
        wanted: the only kind that the method learns from.
        only_checked: nothing is learned from these, so that a label may be seen once.
        say: is told the licence and size of a named set before it is downloaded; None writes to standard error.

    Raises:
        UsageError: the layout cannot be told, is not there, or is not what is wanted; kinds that do not go together.
        DataError: a source cannot be read, a row cannot be used (the message names the first and counts the rest),
            or nothing is left.
    """
    if wanted is not None:
        one_of("kind", wanted, KINDS)
    chosen = layout_named(layout) if layout is not None else None
    summary = Summary()
    given = parts_of([os.fspath(source) for source in sources], chosen, columns_from(columns), summary.notes, say=say)
    parts = [part.found_out(wanted) for part in given]
    _check_kinds(parts, wanted)
    return _first_pass(parts, summary, skip_bad, only_checked)


def _check_kinds(parts: Sequence[Part], wanted: Kind | None) -> None:
    known = [part for part in parts if part.layout is not None]
    for part in known:
        assert part.layout is not None
        if wanted is not None and part.layout.kind != wanted:
            raise UsageError(
                f"{part.file.name} holds {part.layout.hint} ({part.layout.name}), but a {wanted} is needed; "
                "name other data, or choose another --method"
            )
    kinds = {part.layout.kind: part for part in known if part.layout}
    if len(kinds) > 1 and (alone := [kind for kind in _ALONE if kind in kinds]):
        other = next(kind for kind in kinds if kind != alone[0])
        raise UsageError(
            f"{kinds[alone[0]].file.name} holds {alone[0]} rows, {kinds[other].file.name} {other} rows, which are learned by "
            "different methods; learn from one after the other"
        )


def _first_pass(parts: Sequence[Part], summary: Summary, skip_bad: bool, only_checked: bool) -> ExampleSet:
    """Look at every row: count, compare, and keep eight bytes for its content and eight for its prompt."""
    log = ReadLog()
    contents, prompts, labels = array("Q"), array("Q"), array("l")
    seen: dict[str, tuple[int, Labelled]] = {}
    for part in parts:
        before = len(contents), summary.refused_count
        for outcome in part.outcomes(log):
            if isinstance(outcome, Refusal):
                summary.refuse(outcome)
                continue
            summary.take(outcome)
            contents.append(content_key(outcome))
            prompts.append(prompt_key(outcome))
            if isinstance(outcome, Labelled):
                labels.append(seen.setdefault(outcome.label, (len(seen), outcome))[0])
                summary.labels[outcome.label] += 1
                _check_labels(seen, outcome)
        if (len(contents), summary.refused_count) == before:
            summary.notes.append(f"{part.file.name} is empty")
    summary.notes += _encoding_notes(log)
    keys = Keys(np.array(contents, np.uint64), np.array(prompts, np.uint64), np.array(labels, np.int64))
    left_out = frozenset() if only_checked else _refuse_single_labels(summary, seen)
    if left_out:
        keys = keys.without_labels({seen[label][0] for label in left_out})
    summary.duplicates = len(keys.contents) - len(np.unique(keys.contents))
    if summary.refused_count and not skip_bad:
        raise summary.error()
    if not sum(summary.counts.values()):
        raise _nothing(parts, summary)
    return ExampleSet(parts, summary, keys, left_out)


def _check_labels(seen: Mapping[str, object], example: Labelled) -> None:
    if len(seen) > _MOST_LABELS:
        raise UsageError(
            f"{example.origin.file} has more than {_MOST_LABELS:,} different labels, so the column is no label; "
            "name the right one with --columns label=COLUMN"
        )


def _refuse_single_labels(summary: Summary, seen: Mapping[str, tuple[int, Labelled]]) -> frozenset[str]:
    """Refuse rows whose label no other has: nothing could be checked about it."""
    single = [label for label, count in summary.labels.items() if count == 1]
    for label in single:
        example = seen[label][1]
        fix = "give at least two examples of each label, or mend its spelling"
        summary.refuse(Refusal(example.origin, f"the label {label[:40]!r} is seen once", fix), was_counted=example)
        del summary.labels[label]
    return frozenset(single)


def _encoding_notes(log: ReadLog) -> list[str]:
    others = [f"{size:,} bytes as {name}" for name, size in log.encodings.items() if name not in ("utf-8", "undecodable")]
    notes = [f"read {', '.join(others)}"] if others else []
    if lost := log.encodings["undecodable"]:
        notes.append(f"{lost:,} characters could not be decoded; write the files as UTF-8")
    return notes


def _nothing(parts: Sequence[Part], summary: Summary) -> DataError:
    names = ", ".join(part.file.name for part in parts[:3]) + (" and more" if len(parts) > 3 else "")
    if summary.refused_count:
        return DataError(f"{names}: {summary.sentence()}; {summary.refused[0].fix}")
    return DataError(f"{names} holds no rows; put examples into it, one a line")


def _said_of(part: Part) -> str:
    layout = f"{part.layout.name} ({part.layout.hint})" if part.layout else "nothing that can be read"
    unused = f"; not used: {', '.join(part.unused[:8])}{' …' if len(part.unused) > 8 else ''}" if part.unused else ""
    return f"{part.file.name}: {layout}{unused}"


def _more_files(parts: Sequence[Part]) -> list[str]:
    return [f"and {len(parts) - 10:,} more files"] if len(parts) > 10 else []
