"""An example to learn from, whatever layout its row was in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Message = Mapping[str, Any]
"""role and content, in the words of chat templates; perhaps tool_calls, name …"""
Kind = Literal["chat", "completion", "text", "preference", "label"]
KINDS: tuple[Kind, ...] = ("chat", "completion", "text", "preference", "label")


@dataclass(frozen=True)
class Origin:
    """Where an example was read, for messages to a person."""

    file: str
    line: int
    """From 1: of the line, or of the row where a file has no lines."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Chat:
    """A conversation; what the assistant says in it is learned."""

    messages: tuple[Message, ...]
    origin: Origin
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Completion:
    """A prompt and what follows it; only the latter is learned."""

    prompt: str
    completion: str
    origin: Origin


@dataclass(frozen=True)
class PlainText:
    """A text of which everything is learned."""

    text: str
    origin: Origin


@dataclass(frozen=True)
class Preference:
    """Two answers to the same, of which one is better. All three are texts, or all three are messages."""

    prompt: str | tuple[Message, ...]
    chosen: str | tuple[Message, ...]
    """What follows the prompt: a text, or messages that end with the assistant's."""
    rejected: str | tuple[Message, ...]
    origin: Origin
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Labelled:
    """A text that belongs to one of few classes."""

    text: str
    label: str
    origin: Origin


Example = Chat | Completion | PlainText | Preference | Labelled
