"""What kind of examples these are."""

from __future__ import annotations

from collections.abc import Sequence

from owngpt.finetune.examples.example import Chat, Completion, Example, Kind, Labelled, PlainText, Preference

_KINDS: dict[type[object], Kind] = {
    Chat: "chat", Completion: "completion", PlainText: "text", Preference: "preference", Labelled: "label",
}  # fmt: skip


def kind_of(examples: Sequence[Example]) -> Kind:
    """Of all of them: a set has one kind. Plain text where there is none."""
    return _KINDS[type(examples[0])] if examples else "text"
