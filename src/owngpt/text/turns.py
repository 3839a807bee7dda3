"""Which turns of a conversation still fit a model's context."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Messages = Sequence[Mapping[str, Any]]


def latest_turns(
    messages: Messages, fits: Callable[[Messages], bool], *, at_least: int = 0
) -> tuple[list[Mapping[str, Any]], int]:
    """The conversation without as many of its oldest turns as it takes to fit.

    A turn is a question with everything up to the next question; the system's messages at the start stay, and so does the
    last turn, whether it fits or not.

    :param fits: whether the model could answer these messages.
    :param at_least: turns to drop without asking: those that did not fit before.
    :returns: the messages, and how many turns were dropped.
    """
    start = next((index for index, message in enumerate(messages) if message.get("role") != "system"), len(messages))
    system, rest = list(messages[:start]), list(messages[start:])
    dropped = 0
    while dropped < at_least or not fits([*system, *rest]):
        following = next((index for index, message in enumerate(rest) if index and message.get("role") == "user"), None)
        if following is None:
            break
        rest = rest[following:]
        dropped += 1
    return [*system, *rest], dropped
