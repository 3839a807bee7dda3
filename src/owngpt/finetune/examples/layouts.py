"""The layouts that rows come in, each one small function from the fields of a row to an example.

Sources: Alpaca from tatsu-lab/stanford_alpaca; ShareGPT and its tags from LLaMA-Factory's data/README; prompt and
completion from the dataset formats of TRL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from owngpt.errors import UsageError
from owngpt.finetune.examples.example import Chat, Completion, Example, Kind, Labelled, Origin, PlainText
from owngpt.finetune.examples.fault import Fault
from owngpt.finetune.examples.fields import LABELLED_TEXTS, Fields, column_of, field, instruction
from owngpt.finetune.examples.messages import Tags, check_answered, conversation, text_of, tools_of, turns
from owngpt.finetune.examples.preferences import preference


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
    messages = turns(instruction(fields), answer, system=field(fields, "system"), history=field(fields, "history"))
    return Chat(messages, origin, tools_of(field(fields, "tools")))


def _text(fields: Fields, origin: Origin, tags: Tags) -> Example:
    return PlainText(text_of(field(fields, "text"), "text"), origin)


def _label(fields: Fields, origin: Origin, tags: Tags) -> Example:
    column, label = LAYOUTS["label"].column(fields, "text"), field(fields, "label")
    text = None if column is None else fields[column]
    if isinstance(label, float) and label.is_integer():
        label = int(label)  # a column of whole numbers in which some are missing
    if isinstance(label, bool | int):
        label = str(label)
    return Labelled(text_of(text, "text"), text_of(label, "label").strip(), origin)


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
            ("prompt", "messages", "conversations", "question", "instruction", "input", "history", *_AROUND), preference,
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
