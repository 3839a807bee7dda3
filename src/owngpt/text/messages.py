"""What a chat template is given: messages rebuilt of plain JSON types, and the tag that leaves the last of them open."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from owngpt.errors import UsageError

REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
"""What a message's thoughts are called; templates read the first, that of gpt-oss the second."""
TAG = "OWNGPT_GOES_ON_FROM_HERE "
"""Stands where the model is to go on; the space shows whether the template trims."""


def plain(value: Any) -> Any:
    """The value rebuilt of plain JSON types, so that a template meets no object with methods of its own.

    Records (dataclasses, objects with ``model_dump``) become dictionaries; of anything else only the type's name is left.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int | float):
        return int.__int__(value) if isinstance(value, int) else float.__float__(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [plain(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, numpy.generic):
        return plain(value.item())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)) and not isinstance(value, type):
        return plain(value.model_dump())
    return f"<{type(value).__name__}>"


def plain_messages(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Messages as templates expect them: keys whose value is None are left out, thoughts bear the names that are read.

    :raises UsageError: there is none, or one is not a message.
    """
    if not messages:
        raise UsageError("the conversation is empty; give at least one message")
    try:
        rebuilt = [plain(message) for message in messages]
    except RecursionError:
        raise UsageError("a message is nested too deeply; the deepest real ones have about ten levels") from None
    for message, given in zip(rebuilt, messages, strict=True):
        if not isinstance(message, dict):
            raise UsageError(f'a message is a {type(given).__name__}; it must be a dict with "role" and "content"')
    return [_with_reasoning({key: value for key, value in message.items() if value is not None}) for message in rebuilt]


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """A message's thoughts under the names that templates read them by."""
    thoughts = next((message[name] for name in REASONING_NAMES if message.get(name) is not None), None)
    return message if thoughts is None else {"thinking": thoughts, **message, "reasoning_content": thoughts}


def tag_last(values: dict[str, Any], field: bool | str, source: str) -> tuple[dict[str, Any], str]:
    """Put the tag behind the text that the model is to go on with.

    :param field: the field of the last message that holds it; True for "content".
    :returns: the template's values with the tag, and the text.
    :raises UsageError: the message has no such text, or the template does not read it.
    """
    name = field if isinstance(field, str) else "content"
    *earlier, last = values["messages"]
    text = last.get(name)
    if text is None:
        raise UsageError(f'the last message has no "{name}" to continue')
    names = [other for other in REASONING_NAMES if last.get(other) == text] if name in REASONING_NAMES else [name]
    if not any(other in source for other in names):
        raise UsageError(f'the chat template does not read "{name}", so it cannot be continued')
    if isinstance(text, list | tuple):
        blocks, text = _tagged_blocks(text)
        tagged: dict[str, Any] = {name: blocks}
    elif not isinstance(text, str):
        raise UsageError(f'"{name}" of the last message is a {type(text).__name__}; only text can be continued')
    else:
        tagged = dict.fromkeys(names, text + TAG)
    return {**values, "messages": [*earlier, {**last, **tagged}]}, text


def _tagged_blocks(blocks: Sequence[Any]) -> tuple[list[Any], str]:
    """The content's blocks with the tag behind the last that holds text, and that text."""
    for index in range(len(blocks) - 1, -1, -1):
        block = blocks[index]
        if isinstance(block, dict) and isinstance(block.get("text"), str):
            return [*blocks[:index], {**block, "text": block["text"] + TAG}, *blocks[index + 1 :]], block["text"]
    raise UsageError("the last message holds no text to continue")


def cut_at_tag(rendered: str, text: str) -> str:
    """The rendering up to the tag.

    :raises UsageError: the template left out the text or its end.
    """
    place = rendered.rfind(TAG.strip())
    if place < 0 or text.strip() not in rendered:
        raise UsageError("the chat template leaves out part of the last message, so it cannot be continued")
    kept = rendered[place : place + len(TAG)] == TAG
    return rendered[:place] if kept else rendered[:place].rstrip()
