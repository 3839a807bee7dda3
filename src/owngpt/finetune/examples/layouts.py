"""The layouts that rows come in, each one small function from the fields of a row to an example.

A field is a column under the name that the layout gives it; a layout knows the usual other spellings. Alpaca:
tatsu-lab/stanford_alpaca; ShareGPT, ranking and tags: LLaMA-Factory's data/README; prompt, completion, chosen and rejected:
the dataset formats of TRL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from owngpt.errors import UsageError
from owngpt.finetune.examples.example import Chat, Completion, Example, Kind, Labelled, Message, Origin, PlainText, Preference
from owngpt.finetune.examples.fault import Fault
from owngpt.finetune.examples.messages import Tags, check_answered, conversation, parsed, text_of, tools_of, turns

SPELLINGS: dict[str, tuple[str, ...]] = {
    "messages": ("dialogue", "dialog"),
    "conversations": ("conversation",),
    "prompt": (),
    "completion": (),
    "question": ("query", "q", "ask", "user", "prompt", "input", "问题", "提问", "问"),
    "answer": ("response", "a", "reply", "output", "completion", "target", "assistant", "回答", "答案", "回复", "答"),
    "context": (),
    "instruction": ("指令",),
    "input": ("context", "输入"),
    "output": ("response", "answer", "completion", "target", "输出"),
    "history": (),
    "system": ("system_prompt",),
    "tools": ("functions",),
    "chosen": (),
    "rejected": (),
    "text": ("content", "document", "body", "article", "story", "passage", "正文", "文本", "内容"),
    "label": ("labels", "class", "category", "intent", "sentiment", "标签", "类别", "分类"),
}
"""Fields, by which a person names columns, and what else they are called in files."""
LABELLED_TEXTS = ("text", "sentence", "input", "content", "question", "query", "utterance", "review", "comment", "文本", "内容")
"""What the text of a label is called."""

Fields = Mapping[str, Any]
"""Values of a row by column in lower case, without those that are None."""


@dataclass(frozen=True)
class Layout:
    """How the fields of a row make an example."""

    name: str
    kind: Kind
    needed: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[Fields, Origin, Tags], Example]
    hint: str
    """What such a row looks like."""

    def used(self, columns: Mapping[str, Any] | frozenset[str]) -> set[str]:
        """Those of `columns` that this layout reads."""
        found = {self.column(columns, name) for name in (*self.needed, *self.optional)}
        return {name for name in found if name is not None}

    def column(self, columns: Mapping[str, Any] | frozenset[str], name: str) -> str | None:
        """The column that holds the field `name`; the text of a label has names of its own."""
        if self.kind == "label" and name == "text":
            return next((column for column in LABELLED_TEXTS if column in columns), None)
        return column_of(columns, name)

    def missing(self, columns: Mapping[str, Any] | frozenset[str]) -> str | None:
        """The first field that is needed and not there."""
        return next((name for name in self.needed if self.column(columns, name) is None), None)


def column_of(columns: Mapping[str, Any] | frozenset[str], name: str) -> str | None:
    """The column that holds the field `name`: under its own name, else under the first other spelling there is."""
    return next((column for column in (name, *SPELLINGS[name]) if column in columns), None)


def field(fields: Fields, name: str) -> Any:
    """The value of the field `name`, None where the row has none."""
    column = column_of(fields, name)
    return None if column is None else fields[column]


def _messages(fields: Fields, origin: Origin, tags: Tags) -> Example:
    return _chat(field(fields, "messages"), fields, origin, tags)


def _sharegpt(fields: Fields, origin: Origin, tags: Tags) -> Example:
    return _chat(field(fields, "conversations"), fields, origin, tags)


def _chat(value: Any, fields: Fields, origin: Origin, tags: Tags) -> Chat:
    if value is None:
        raise Fault("no messages", "give the conversation in every row")
    messages = conversation(value, tags, system=field(fields, "system"))
    check_answered(messages)
    return Chat(messages, origin, tools_of(field(fields, "tools")))


def _completion(fields: Fields, origin: Origin, tags: Tags) -> Example:
    prompt, completion = fields.get("prompt"), fields.get("completion")
    if isinstance(prompt, list | Mapping) or isinstance(completion, list | Mapping):
        return _completed_chat(prompt, completion, fields, origin, tags)
    if isinstance(prompt, str) and not prompt:
        return Completion("", text_of(completion, "completion"), origin)  # what is written without being asked
    return Completion(text_of(prompt, "prompt"), text_of(completion, "completion"), origin)


def _completed_chat(prompt: Any, completion: Any, fields: Fields, origin: Origin, tags: Tags) -> Chat:
    """A prompt and a completion that are messages: only the completion's are learned."""
    asked = conversation(prompt, tags, system=field(fields, "system"))
    answer = conversation(completion, tags)
    check_answered((*asked, *answer), "assistant turn in the completion")
    if not any(message["role"] == "assistant" for message in answer):
        raise Fault("no assistant turn in the completion", "add the answer that is to be learned")
    masked = tuple({**message, "weight": 0} if message["role"] == "assistant" else message for message in asked)
    return Chat((*masked, *answer), origin, tools_of(field(fields, "tools")))


def _question(fields: Fields, origin: Origin, tags: Tags) -> Example:
    question = text_of(field(fields, "question"), "question")
    if isinstance(context := fields.get("context"), str) and context.strip():
        question = f"{context}\n\n{question}"
    answer = text_of(field(fields, "answer"), "answer")
    messages = turns(question, answer, system=field(fields, "system"), history=field(fields, "history"))
    return Chat(messages, origin, tools_of(field(fields, "tools")))


def _alpaca(fields: Fields, origin: Origin, tags: Tags) -> Example:
    answer = text_of(field(fields, "output"), "output")
    messages = turns(_instruction(fields), answer, system=field(fields, "system"), history=field(fields, "history"))
    return Chat(messages, origin, tools_of(field(fields, "tools")))


def _instruction(fields: Fields) -> str:
    """The instruction and its input, as LLaMA-Factory joins them."""
    parts = (field(fields, "instruction"), field(fields, "input"))
    given = [text_of(part, name) for part, name in zip(parts, ("instruction", "input"), strict=True) if part not in (None, "")]
    if not given:
        raise Fault("the instruction is empty", "write it, or take the row out")
    return "\n".join(given)


def _text(fields: Fields, origin: Origin, tags: Tags) -> Example:
    return PlainText(text_of(field(fields, "text"), "text"), origin)


def _label(fields: Fields, origin: Origin, tags: Tags) -> Example:
    column, label = LAYOUTS["label"].column(fields, "text"), field(fields, "label")
    text = None if column is None else fields[column]
    if isinstance(label, bool | int):
        label = str(label)
    return Labelled(text_of(text, "text"), text_of(label, "label").strip(), origin)


def _preference(fields: Fields, origin: Origin, tags: Tags) -> Example:
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
    question = _instruction(fields) if field(fields, "instruction") else field(fields, "question")
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


_SPEAKERS = {"\n\nHuman:": "user", "\n\nAssistant:": "assistant"}


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


_AROUND = ("system", "tools")
LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("messages", "chat", ("messages",), _AROUND, _messages, '{"messages": [{"role": "user", "content": …}, …]}'),
        Layout(
            "sharegpt", "chat", ("conversations",), _AROUND, _sharegpt,
            '{"conversations": [{"from": "human", "value": …}, …]}',
        ),
        Layout(
            "alpaca", "chat", ("instruction", "output"), ("input", "history", *_AROUND), _alpaca,
            '{"instruction": …, "input": …, "output": …}',
        ),
        Layout(
            "question-answer", "chat", ("question", "answer"), ("context", "history", *_AROUND), _question,
            '{"question": …, "answer": …}, learned as a chat',
        ),
        Layout("completion", "completion", ("prompt", "completion"), _AROUND, _completion, '{"prompt": …, "completion": …}'),
        Layout("text", "text", ("text",), (), _text, '{"text": …}'),
        Layout(
            "preference", "preference", ("chosen", "rejected"),
            ("prompt", "messages", "conversations", "question", "instruction", "input", "history", *_AROUND), _preference,
            '{"prompt": …, "chosen": …, "rejected": …}',
        ),
        Layout("label", "label", ("text", "label"), (), _label, '{"text": …, "label": …}'),
    )
}  # fmt: skip


def layout_named(name: str) -> Layout:
    """The layout that a person names.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in LAYOUTS:
        known = "; ".join(f"{layout.name}: {layout.hint}" for layout in LAYOUTS.values())
        raise UsageError(f"--layout is {name}, but must be one of these: {known}")
    return LAYOUTS[name]
