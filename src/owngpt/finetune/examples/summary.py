"""What was found in a set of examples, and what was refused, in numbers and in one sentence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from owngpt.errors import DataError
from owngpt.finetune.examples.example import Chat, Completion, Example, Kind, Labelled, Message, PlainText, Preference
from owngpt.finetune.examples.part import Refusal

_KEPT_REFUSALS = 20
_KEPT_REASONS = 50
_NAMES: dict[Kind, tuple[str, str]] = {
    "chat": ("chat", "chats"),
    "completion": ("completion", "completions"),
    "text": ("text", "texts"),
    "preference": ("preference", "preferences"),
    "label": ("labelled text", "labelled texts"),
}


def kind_of(example: Example) -> Kind:
    """The kind of an example."""
    kinds: dict[type, Kind] = {
        Chat: "chat", Completion: "completion", PlainText: "text", Preference: "preference", Labelled: "label"
    }  # fmt: skip
    return kinds[type(example)]


def texts_of(example: Example) -> Iterator[str]:
    """Every text of an example."""
    if isinstance(example, Chat):
        yield from _contents(example.messages)
    elif isinstance(example, Completion):
        yield from (example.prompt, example.completion)
    elif isinstance(example, Preference):
        for part in (example.prompt, example.chosen, example.rejected):
            yield from [part] if isinstance(part, str) else _contents(part)
    else:
        yield example.text


def _contents(messages: tuple[Message, ...]) -> list[str]:
    return [str(message["content"]) for message in messages]


@dataclass
class Summary:
    """Counts of one pass over all rows; what it keeps does not grow with their number."""

    counts: Counter[Kind] = field(default_factory=Counter)
    turns: int = 0
    """Messages of all chats, without the system's."""
    characters: int = 0
    longest: int = 0
    """Characters of the longest example."""
    labels: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    """Examples that say the same as an earlier one."""
    refused_count: int = 0
    broken_count: int = 0
    """Files that could be read only up to a refused row."""
    refused: list[Refusal] = field(default_factory=list)
    """The first of them."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Refused rows by what is wrong, with numbers and quotations left out."""
    notes: list[str] = field(default_factory=list)
    """What a person should know, such as in which encoding a file was read."""

    def take(self, example: Example) -> None:
        """Count an example."""
        self.counts[kind_of(example)] += 1
        size = sum(map(len, texts_of(example)))
        self.characters += size
        self.longest = max(self.longest, size)
        if isinstance(example, Chat):
            self.turns += sum(message["role"] != "system" for message in example.messages)

    def refuse(self, refusal: Refusal, *, was_counted: Example | None = None) -> None:
        """Count a row that is not used; `was_counted` if it was taken for an example before."""
        if was_counted is not None:
            self.counts[kind_of(was_counted)] -= 1
            self.characters -= sum(map(len, texts_of(was_counted)))
        self.refused_count += 1
        self.broken_count += refusal.is_last
        reason = re.sub(r"'[^']*'|\([^)]*\)", "…", re.sub(r"\d[\d,]*", "N", refusal.reason)).replace(" …", "").strip()
        if reason in self.reasons or len(self.reasons) < _KEPT_REASONS:
            self.reasons[reason] += 1
        else:
            self.reasons["something else"] += 1
        if len(self.refused) < _KEPT_REFUSALS:
            self.refused.append(refusal)

    def sentence(self) -> str:
        """ "1,204 chats, 3.1 turns each; 12 rows refused: line 88: no assistant turn"."""
        parts = []
        for kind, count in self.counts.items():
            each = f", {self.turns / count:.1f} turns each" if kind == "chat" and count else ""
            parts += [_counted(kind, count) + each] if count else []
        if self.counts["label"]:
            parts.append(f"{len(self.labels):,} labels")
        if self.duplicates:
            parts.append(f"{self.duplicates:,} of them said before")
        text = ", ".join(parts) or "nothing to learn from"
        if self.refused_count:
            first = self.refused[0]
            files = {refusal.origin.file for refusal in self.refused}
            where = first.place if len(files) == 1 else f"{first.origin.file}, {first.place}"
            text += f"; {_rows(self.refused_count)} refused: {where}: {first.reason}"
        if self.broken_count:
            text += f"; {_files(self.broken_count)} could not be read to the end"
        return text

    def error(self) -> DataError:
        """The refusal of the whole set for its bad rows: the first one, how to mend it, and how many more there are."""
        first = self.refused[0]
        more = ""
        if self.refused_count > 1:
            kinds = ", ".join(f"{count:,} × {reason}" for reason, count in self.reasons.most_common(5))
            more = f" ({_rows(self.refused_count)} cannot be used in all: {kinds})"
        return DataError(
            f"{first.origin.file}, {first.place}: {first.reason}; {first.fix}, or leave such rows out with --skip-bad{more}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "examples": sum(self.counts.values()),
            "counts": {kind: count for kind, count in self.counts.items() if count},
            "turns": self.turns,
            "characters": self.characters,
            "longest_characters": self.longest,
            "labels": dict(self.labels.most_common()),
            "duplicates": self.duplicates,
            "refused": {
                "rows": self.refused_count,
                "broken_files": self.broken_count,
                "reasons": dict(self.reasons.most_common()),
                "first": [
                    {"file": one.origin.file, "number": one.origin.line, "reason": one.reason, "fix": one.fix}
                    for one in self.refused
                ],
            },
            "notes": self.notes,
        }


def _counted(kind: Kind, count: int) -> str:
    return f"{count:,} {_NAMES[kind][count != 1]}"


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
