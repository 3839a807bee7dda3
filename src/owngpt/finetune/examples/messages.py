"""Conversations as people write them, in the one form that chat templates read.

Understood are the messages of OpenAI and transformers (`role`, `content`) and of ShareGPT (`from`, `value`), content in
parts, tool calls and what tools answered, and the other names that a LLaMA-Factory description gives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from owngpt.finetune.examples.example import Message
from owngpt.finetune.examples.fault import Fault

_CALL = "function_call"
_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "ai"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "ipython"), "tool"),
    _CALL: _CALL,
}
_MOST_LEVELS = 50
_KEPT = ("name", "tool_calls", "tool_call_id", "reasoning_content", "thinking", "reasoning", "weight")


@dataclass(frozen=True)
class Tags:
    """What the keys and roles of a file's messages are called."""

    role: tuple[str, ...] = ("role", "from")
    content: tuple[str, ...] = ("content", "value")
    roles: Mapping[str, str] = field(default_factory=lambda: _ROLES)
    """Ours by the file's, which are in lower case."""


USUAL_TAGS = Tags()


def text_of(value: Any, name: str) -> str:
    """`value`, which is to be a text with something in it.

    Raises:
        Fault: it is not; `name` says what it is in the row.
    """
    if value is None:
        raise Fault(f"no {name}", f"give the {name} in every row")
    if not isinstance(value, str):
        raise Fault(f"the {name} is {_kind(value)}", "write it as text")
    if not value.strip():
        raise Fault(f"the {name} is empty", "write it, or take the row out")
    return checked(value, f"the {name}")


def checked(text: str, name: str) -> str:
    """`text`, the part `name` of a row, once it is known to be made of whole characters."""
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        raise Fault(f"{name} holds half of a surrogate pair (\\ud800…)", "write the whole character") from None
    return text


def conversation(value: Any, tags: Tags = USUAL_TAGS, *, system: Any = None) -> tuple[Message, ...]:
    """The messages of a row, or of a JSON text that holds them; a first system message goes before `system`.

    Raises:
        Fault: there are none, or one cannot be read; the reason says which.
    """
    given = _list_of_messages(value)
    messages = [message for number, one in enumerate(given, 1) if (message := _message(one, number, tags)) is not None]
    if isinstance(system, str) and system.strip() and not (messages and messages[0]["role"] == "system"):
        messages.insert(0, {"role": "system", "content": checked(system, "the system message")})
    for number, message in enumerate(messages[1:], 2):
        if message["role"] == "system":
            raise Fault(f"message {number} is a system message", "put it first; only the first can be one")
    return tuple(messages)


def check_answered(messages: Sequence[Message], name: str = "assistant turn") -> None:
    """Raise :class:`Fault` unless the assistant says something that is learned, after somebody else has spoken."""
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise Fault(f"no {name}", "add the answer that is to be learned")
    if all(message.get("weight") == 0 for message in answers):
        raise Fault("every assistant turn has the weight 0", "give weight 1 to what is to be learned")
    if not any(message["role"] != "assistant" for message in messages):
        raise Fault("only the assistant speaks", "add what it answers to")


def turns(question: str, answer: str, *, system: Any = None, history: Any = None) -> tuple[Message, ...]:
    """One exchange after earlier ones (`history`: a list of pairs of question and answer)."""
    earlier: list[Message] = []
    for number, pair in enumerate(parsed(history) or [], 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Fault(f"part {number} of the history is no pair", "give it as [question, answer]")
        earlier.append({"role": "user", "content": text_of(pair[0], "question in the history")})
        earlier.append({"role": "assistant", "content": text_of(pair[1], "answer in the history")})
    asked = [*earlier, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return conversation(asked, system=system)


def tools_of(value: Any) -> tuple[Mapping[str, Any], ...]:
    """The tools of a row, given as a list or as its JSON text, each as {"type": "function", "function": …}."""
    tools = parsed(value)
    if not tools:
        return ()
    if isinstance(tools, Mapping):
        tools = [tools]
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise Fault("the tools are not a list of objects", 'give them as [{"name": …, "parameters": …}]')
    return tuple(_whole(tool) if "function" in tool else {"type": "function", "function": _whole(tool)} for tool in tools)


def parsed(value: Any) -> Any:
    """What a JSON text holds, for a cell of csv or parquet; anything else as it is.

    Raises:
        Fault: the text begins like JSON and is not.
    """
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise Fault(f"a cell is not valid JSON ({error})", "mend the cell") from None


def _list_of_messages(value: Any) -> list[Any]:
    value = parsed(value)
    if isinstance(value, Mapping) and value and all(isinstance(part, list) for part in value.values()):
        # a table of columns, which is how some writers of parquet keep a list of objects
        value = [dict(zip(value, cells, strict=False)) for cells in zip(*value.values(), strict=False)]
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list) or not value:
        raise Fault(
            "the conversation is empty" if not value else f"the conversation is {_kind(value)}", "give a list of messages"
        )
    return value


def _message(given: Any, number: int, tags: Tags) -> Message | None:
    """One message in the words of templates; None for an empty system message, which says nothing."""
    if (simple := _simple(given, tags)) is not None:
        return simple
    if not isinstance(given, Mapping):
        raise Fault(f"message {number} is {_kind(given)}", 'give it as {"role": …, "content": …}')
    role = _role(_first(given, tags.role), number, tags)
    content = _content(_first(given, tags.content), number)
    if role == _CALL:
        return {"role": "assistant", "content": "", "tool_calls": _calls(content, number)}
    message: dict[str, Any] = {"role": role, "content": checked(content, f"message {number}")}
    for key in _KEPT:
        if given.get(key) not in (None, [], ""):
            message[key] = _whole(given[key])
    if isinstance(given.get("train"), bool) and "weight" not in message:
        message["weight"] = int(given["train"])
    if not content.strip() and not _may_be_blank(message):
        if role == "system":
            return None
        raise Fault(f"message {number} ({role}) is empty", "write it, or take the row out")
    return message


def _simple(given: Any, tags: Tags) -> Message | None:
    """A message that is already as templates read it, which most are: a set of a million is read twice as fast."""
    if type(given) is not dict or len(given) != 2 or tags is not USUAL_TAGS:
        return None
    role, content = given.get("role"), given.get("content")
    if (role != "user" and role != "assistant") or type(content) is not str or not content.strip():
        return None
    checked(content, f"a message of the {role}")
    return given


def _may_be_blank(message: Mapping[str, Any]) -> bool:
    return message["role"] == "tool" or "tool_calls" in message


def _role(value: Any, number: int, tags: Tags) -> str:
    if value is None:
        raise Fault(f"message {number} has no {' or '.join(tags.role)}", "say who speaks: system, user, assistant or tool")
    role = tags.roles.get(value.strip().lower()) if isinstance(value, str) else None
    if role is None:
        raise Fault(f"message {number} has the role {str(value)[:40]!r}", "use system, user, assistant or tool")
    return role


def _content(value: Any, number: int) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise Fault(f"the content of message {number} is {_kind(value)}", "write it as text")
    return "".join(_part(part, number) for part in value)


def _part(part: Any, number: int) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type", "part without text") if isinstance(part, Mapping) else _kind(part)
    raise Fault(
        f"message {number} holds an {kind}" if str(kind)[0] in "aeiou" else f"message {number} holds a {kind}", "give text only"
    )


def _calls(content: str, number: int) -> list[Any]:
    """The calls of ShareGPT's function_call, whose text is JSON."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise Fault(f"message {number} is a function_call without valid JSON", 'write {"name": …, "arguments": …}') from None
    calls = _whole(value) if isinstance(value, list) else [_whole(value)]
    if not calls or not all(isinstance(call, Mapping) and "name" in call for call in calls):
        raise Fault(f"message {number} is a function_call without a name", 'write {"name": …, "arguments": …}')
    return [{"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}} for call in calls]


def _first(given: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((given[name] for name in names if given.get(name) is not None), None)


def _whole(value: Any, depth: int = 0) -> Any:
    """`value` without the keys that are None, which a table writes for every key that only other rows have."""
    if depth > _MOST_LEVELS:
        raise Fault(f"a message or tool is nested more than {_MOST_LEVELS} levels deep", "take the row out")
    if isinstance(value, Mapping):
        return {checked(str(key), "a name"): _whole(part, depth + 1) for key, part in value.items() if part is not None}
    if isinstance(value, list | tuple):
        return [_whole(part, depth + 1) for part in value]
    return checked(value, "a message or tool") if isinstance(value, str) else value


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", str: "a text"}
    return names.get(type(value), f"a {type(value).__name__}")
