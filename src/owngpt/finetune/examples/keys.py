"""What an example is told apart by: all that it says, and what is asked in it."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from owngpt.finetune.examples.example import Chat, Completion, Example, Labelled, Message, PlainText, Preference

_TELLING = 24
"""Letters from which on a question is taken to be one of a kind: "Hi" alone says little about what follows."""
_NO_LETTERS = re.compile(r"[\W_]+")


def content_key(example: Example) -> int:
    """64 bits of all that the example says; equal for rows that repeat each other."""
    return _hashed(type(example).__name__ + repr([value for name, value in vars(example).items() if name != "origin"]))


def prompt_key(example: Example) -> int:
    """64 bits of what is asked, whatever its case, width, spaces and punctuation."""
    return _hashed(_prompt(example))


def _prompt(example: Example) -> str:
    """The letters of what is asked."""
    if isinstance(example, Chat):
        return _asked(example.messages)
    if isinstance(example, Completion):
        return _letters(example.prompt) if example.prompt.strip() else _letters(example.completion)
    if isinstance(example, Preference):
        return _letters(example.prompt) if isinstance(example.prompt, str) else _asked(example.prompt)
    assert isinstance(example, PlainText | Labelled)
    return _letters(example.text)


def _asked(messages: tuple[Message, ...]) -> str:
    """The first that is said to the assistant, until it tells the conversation from others."""
    asked = ""
    for message in messages:
        if message["role"] not in ("system", "assistant"):
            asked += _letters(message["content"])
            if len(asked) >= _TELLING or len(asked.encode()) >= _TELLING:
                break
    return asked


def _letters(text: str) -> str:
    folded = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return _NO_LETTERS.sub("", folded.casefold()) or folded


def _hashed(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
