"""Rows with two answers of which one is better, in every form: prompt apart or shared, plain texts or messages.

Sources: the preference formats of TRL, the rankings of LLaMA-Factory, the dialogues of Anthropic's HH-RLHF.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from owngpt.finetune.examples.example import Example, Message, Origin, Preference
from owngpt.finetune.examples.fault import Fault
from owngpt.finetune.examples.fields import Fields, field, instruction
from owngpt.finetune.examples.messages import Tags, conversation, parsed, text_of, tools_of, turns

_SPEAKERS = {"\n\nHuman:": "user", "\n\nAssistant:": "assistant"}


def preference(fields: Fields, origin: Origin, tags: Tags) -> Example:
    """The preference of a row.

    Raises:
        Fault: it has none that can be learned; the reason says why.
    """
    chosen, rejected = _answer(fields.get("chosen"), "chosen"), _answer(fields.get("rejected"), "rejected")
    if chosen == rejected:
        raise Fault("chosen and rejected are the same", "take the row out, or give an answer that is worse")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise Fault("one of chosen and rejected is a text, the other messages", "give both in the same form")
    if not isinstance(chosen, str):
        return _preferred_messages(fields, chosen, rejected, origin, tags)
    prompt, system = fields.get("prompt"), field(fields, "system")
    if (asked := _asked(fields, tags)) is not None:
        return _checked_pair(asked, _said(chosen), _said(rejected), fields, origin)
    if isinstance(prompt, str):
        if isinstance(system, str) and system.strip():
            asked = conversation([{"role": "user", "content": text_of(prompt, "prompt")}], system=system)
            return _checked_pair(asked, _said(chosen), _said(rejected), fields, origin)
        return Preference(text_of(prompt, "prompt"), chosen, rejected, origin)
    return _shared_text(chosen, rejected, origin)


def _answer(value: Any, name: str) -> Any:
    """A text with something in it, or messages that are still to be read."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = parsed(value)  # messages in a cell
        except Fault:
            return text_of(value, name)
    return value if isinstance(value, list | Mapping) and value else text_of(value, name)


def _asked(fields: Fields, tags: Tags) -> tuple[Message, ...] | None:
    """The prompt as messages; None where it is a text or is not there."""
    system = field(fields, "system")
    for name in ("prompt", "conversations", "messages"):
        value = field(fields, name)
        if isinstance(value, list | Mapping) or (name != "prompt" and value is not None):
            return conversation(value, tags, system=system)
    if "prompt" in fields:
        return None
    question = instruction(fields) if field(fields, "instruction") else field(fields, "question")
    if question is None:
        return None
    return turns(text_of(question, "question"), "-", system=system, history=field(fields, "history"))[:-1]


def _preferred_messages(fields: Fields, chosen: Any, rejected: Any, origin: Origin, tags: Tags) -> Preference:
    """Messages with the prompt apart, or with a prompt that both begin with."""
    better, worse = conversation(chosen, tags), conversation(rejected, tags)
    asked = _asked(fields, tags)
    if asked is None:
        prompt, system = fields.get("prompt"), field(fields, "system")
        if better[0]["role"] == "assistant" and isinstance(prompt, str):
            asked = conversation([{"role": "user", "content": text_of(prompt, "prompt")}], system=system)
        else:
            asked = conversation(list(better[: _shared(better, worse)]), system=system) if _shared(better, worse) else ()
            better, worse = better[_shared(better, worse) :], worse[_shared(better, worse) :]
    elif better[: len(asked)] == asked == worse[: len(asked)]:
        better, worse = better[len(asked) :], worse[len(asked) :]
    return _checked_pair(asked, better, worse, fields, origin)


def _shared(better: tuple[Message, ...], worse: tuple[Message, ...]) -> int:
    """How many messages both begin with, before the first turn of the assistant that differs."""
    pairs = zip(better, worse, strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(better), len(worse)))


def _checked_pair(
    asked: tuple[Message, ...], better: tuple[Message, ...], worse: tuple[Message, ...], fields: Fields, origin: Origin
) -> Preference:
    if not asked:
        raise Fault("chosen and rejected share no prompt", "begin both with the same messages, or give a prompt")
    for name, answer in (("chosen", better), ("rejected", worse)):
        if not answer or answer[0]["role"] != "assistant" or answer[-1]["role"] != "assistant":
            raise Fault(f"{name} is no answer of the assistant to the prompt", "let it begin and end with the assistant")
    return Preference(asked, better, worse, origin, tools_of(field(fields, "tools")))


def _said(text: str) -> tuple[Message, ...]:
    return ({"role": "assistant", "content": text},)


def _shared_text(chosen: str, rejected: str, origin: Origin) -> Preference:
    """Two texts that begin alike: up to where they part is the prompt (dialogues of Anthropic's HH-RLHF become messages)."""
    if chosen.startswith("\n\nHuman:") and rejected.startswith("\n\nHuman:"):
        better, worse = conversation(_dialogue(chosen)), conversation(_dialogue(rejected))
        shared = _shared(better, worse)
        return _checked_pair(better[:shared], better[shared:], worse[shared:], {}, origin)
    pairs = enumerate(zip(chosen, rejected, strict=False))
    shared = next((index for index, (one, other) in pairs if one != other), min(len(chosen), len(rejected)))
    while shared and _within_word(chosen, shared):
        shared -= 1  # a prompt ends with a whole word
    shared = len(chosen[:shared].rstrip(" "))
    if not chosen[:shared].strip():
        raise Fault("no prompt, and chosen and rejected begin differently", "give the prompt in a column of its own")
    return Preference(chosen[:shared], text_of(chosen[shared:], "chosen"), text_of(rejected[shared:], "rejected"), origin)


def _within_word(text: str, place: int) -> bool:
    """Whether `place` is between two letters of one word; Chinese is written without spaces, so each character may end one."""
    before, after = text[place - 1 : place], text[place : place + 1]
    return before.isalnum() and after.isalnum() and (before + after).isascii()


def _dialogue(text: str) -> list[Message]:
    messages: list[Message] = []
    while text:
        mark = next((mark for mark in _SPEAKERS if text.startswith(mark)), "")
        text = text[len(mark) :]
        ends = [place for other in _SPEAKERS if (place := text.find(other)) >= 0]
        end = min(ends, default=len(text))
        messages.append({"role": _SPEAKERS[mark], "content": text[:end].strip()})
        text = text[end:]
    return messages
